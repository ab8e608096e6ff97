"""The table of duplicates of a small embeddings directory: exact and near ones, ties by id, nothing deleted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.embeddings_run import run_config, write_embeddings
from zscmr_ray.cli.main import run
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.manifest import part_record, read_manifest, write_manifest
from zscmr_ray.stages.duplicates import mark_duplicates
from zscmr_ray.stages.verify import verify_run
from zscmr_ray.storage import Store

BLOCK: list[dict[str, object]] = [{"name": "region", "start": 0, "stop": 2}]
# What `_marked` finds in these four items: c0 and a0 show the same, b is near c0 only, d is alone.
IDS = ["c0", "b", "a0", "d"]
DEGREES = (0.0, 10.0, 0.0, 90.0)
HASHES = ["11" * 32, "22" * 32, "11" * 32, None]


def test_exact_and_near_groups_with_the_smallest_id_kept(tmp_path: Path) -> None:
    rows = _marked(tmp_path, threshold=0.97)
    near = [row for row in rows if row["kind"] == "image_vector"]
    assert [(row["id"], row["group"], row["keep"]) for row in near] == [
        ("a0", "a0", True),
        ("b", "a0", False),
        ("c0", "a0", False),
    ]
    assert [round(row["score"], 3) for row in near] == [1.0, 0.985, 1.0]
    exact = [row for row in rows if row["kind"] == "image_bytes"]
    assert [(row["id"], row["group"], row["score"], row["keep"]) for row in exact] == [
        ("a0", "a0", 1.0, True),
        ("c0", "a0", 1.0, False),
    ]
    captions = [row for row in rows if row["kind"] == "caption"]
    assert [(row["id"], row["keep"]) for row in captions] == [("b#1", True), ("d#0", False)]
    assert len(rows) == 7


def test_nothing_in_the_embeddings_changes_and_a_second_run_returns_at_once(tmp_path: Path) -> None:
    _write(tmp_path)
    files = {path: path.read_bytes() for path in (tmp_path / "embeddings").rglob("*") if path.is_file()}
    source, target = Store(tmp_path / "embeddings"), Store(tmp_path / "out")
    first = mark_duplicates(source, target)
    assert {path: path.read_bytes() for path in files} == files
    assert (first.skipped, mark_duplicates(source, target).skipped) == (False, True)
    assert first.counts == {
        "image": 4, "image_bytes_groups": 1, "image_bytes_rows": 2, "image_vector_groups": 1,
        "image_vector_rows": 3, "text": 8, "caption_groups": 1, "caption_rows": 2,
    }  # fmt: skip
    manifest = read_manifest(target)
    assert manifest is not None and manifest.info == {"threshold": 0.97, "compared_pairs": 6}
    assert [target.sha256(part.name) == part.sha256 for part in manifest.parts] == [True]
    assert verify_run(target.uri)[0].violations == []
    again = Store(tmp_path / "again")
    mark_duplicates(source, again)
    assert again.read_bytes("duplicates.parquet") == target.read_bytes("duplicates.parquet")


def test_without_duplicates_the_table_is_empty_and_readable(tmp_path: Path) -> None:
    _write(tmp_path, hashes=[None] * 4, degrees=(0, 30, 60, 90), same=set())
    result = mark_duplicates(Store(tmp_path / "embeddings"), Store(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out" / "duplicates.parquet")
    assert table.num_rows == 0 and table.column_names == ["id", "group", "kind", "score", "keep"]
    assert result.counts["image_vector_groups"] == 0


def test_text_only_embeddings_are_compared_by_their_texts(tmp_path: Path) -> None:
    vectors = _plane(0, 1, 90)
    write_embeddings(
        run_config(tmp_path), ids=["a", "b", "c"], captions_per_item=1, sides=["text"], blocks=BLOCK,
        vectors={"text": vectors},
    )  # fmt: skip
    mark_duplicates(Store(tmp_path / "embeddings"), Store(tmp_path / "out"))
    rows = pq.read_table(tmp_path / "out" / "duplicates.parquet").to_pylist()
    assert [(row["id"], row["kind"]) for row in rows] == [("a#0", "text_vector"), ("b#0", "text_vector")]


def test_the_ceiling_is_said_before_anything_is_read(tmp_path: Path) -> None:
    _write(tmp_path)
    source, target = Store(tmp_path / "embeddings"), Store(tmp_path / "out")
    with pytest.raises(ConfigError, match="--no-near"):
        mark_duplicates(source, target, max_rows=3)
    assert not target.exists()
    kinds = mark_duplicates(source, target, max_rows=3, near=False).counts
    assert "image_bytes_groups" in kinds and "image_vector_groups" not in kinds


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01, float("nan")])
def test_a_threshold_is_a_cosine(threshold: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cosine"):
        mark_duplicates(Store(tmp_path), Store(tmp_path / "out"), threshold=threshold)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    _write(tmp_path)
    part = next((tmp_path / "embeddings" / "image").glob("part-*"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DataError, match=part.name):
        mark_duplicates(Store(tmp_path / "embeddings"), Store(tmp_path / "out"))
    assert read_manifest(Store(tmp_path / "out")) is None


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path)
    arguments = ["duplicates", str(tmp_path / "embeddings"), "--out", str(tmp_path / "out")]
    assert run([*arguments, "--threshold", "0.99"]) == 0
    assert "2 image_vector_rows" in capsys.readouterr().out
    assert run([*arguments, "--threshold", "0.9"]) == 4
    assert run([*arguments, "--threshold", "0.9", "--overwrite"]) == 0
    assert run([*arguments, "--max-rows", "2", "--overwrite"]) == 2


def _plane(*degrees: float) -> npt.NDArray[np.float16]:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)


def _write(
    folder: Path,
    *,
    hashes: Sequence[str | None] = HASHES,
    degrees: Sequence[float] = DEGREES,
    same: Collection[str] = ("b#1", "d#0"),
) -> None:
    config = run_config(folder)
    vectors = {"image": _plane(*degrees), "text": _plane(*np.linspace(0, 80, 8))}
    write_embeddings(config, ids=IDS, blocks=BLOCK, vectors=vectors)
    for path in (folder / "embeddings" / "image").glob("*.parquet"):
        _replace(path, "sha256", lambda row: hashes[IDS.index(row["id"])])
    for path in (folder / "embeddings" / "text").glob("*.parquet"):
        _replace(path, "caption", lambda row: "same" if row["id"] in same else row["caption"])
    store = Store(folder / "embeddings")
    manifest = read_manifest(store)
    assert manifest is not None
    parts = [part_record(store, part.name, rows=part.rows) for part in manifest.parts]
    write_manifest(store, manifest.model_copy(update={"parts": parts}))


def _replace(path: Path, name: str, value: Any) -> None:
    table = pq.read_table(path)
    at = table.schema.get_field_index(name)
    values = pa.array([value(row) for row in table.to_pylist()], table.schema.field(at).type)
    pq.write_table(table.set_column(at, table.schema.field(at), values), path)


def _marked(folder: Path, *, threshold: float) -> list[dict[str, Any]]:
    _write(folder)
    mark_duplicates(Store(folder / "embeddings"), Store(folder / "out"), threshold=threshold)
    return list(pq.read_table(folder / "out" / "duplicates.parquet").to_pylist())
