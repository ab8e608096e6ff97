"""The clip-retrieval layout there and back: aligned rows, equal bytes, one owner of a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.clip_layout import exported, rows_of, write_foreign
from tests.embeddings_run import BLOCKS, FINGERPRINT, item_ids, run_config, unit_vectors, write_embeddings
from zscmr_ray.cli.main import run
from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.manifest import part_record, read_manifest, write_manifest
from zscmr_ray.schema import provenance_of
from zscmr_ray.stages.convert import export_clip_retrieval, import_clip_retrieval
from zscmr_ray.stages.verify import verify_run
from zscmr_ray.storage import Store


def test_rows_of_the_export_belong_together(tmp_path: Path) -> None:
    source, target = exported(tmp_path, num_items=8, captions_per_item=3)
    ids, images, texts = item_ids(8), unit_vectors(8, seed=1), unit_vectors(24, seed=2)
    numbers = {item: n for n, item in enumerate(ids)}
    seen = 0
    for number in (0, 1):
        vectors = {side: np.load(target / f"{side}_emb/{side}_emb_{number}.npy") for side in ("img", "text")}
        rows = pq.read_table(target / f"metadata/metadata_{number}.parquet").to_pylist()
        assert {len(table) for table in vectors.values()} == {len(rows)}
        assert all(table.dtype == np.float16 for table in vectors.values())
        for place, row in enumerate(rows):
            item = numbers[row["item_id"]]
            caption = int(row["caption_id"].rpartition("#")[2])
            assert row["image_path"] == row["item_id"]
            assert row["caption"] == f"caption {caption} of item {item}"
            assert row["labels"] and row["source_shard"] == "a.tar" and row["source_offset"] == item
            np.testing.assert_array_equal(vectors["img"][place], images[item])
            np.testing.assert_array_equal(vectors["text"][place], texts[3 * item + caption])
        seen += len(rows)
    assert seen == 24
    manifest = read_manifest(Store(target))
    assert manifest is not None
    assert manifest.counts["rows"] == 24 and manifest.counts["image"] == 8 and manifest.counts["text"] == 24
    assert manifest.info["vectors"]["fingerprint"] == FINGERPRINT
    assert manifest.info["left_out"] == ["thumbnail", "region_weights", "regions"]
    for part in manifest.parts:
        assert Store(target).sha256(part.name) == part.sha256
    assert read_manifest(source) is not None


@pytest.mark.parametrize("sides", [["image", "text"], ["image"], ["text"]])
def test_there_and_back_gives_equal_values_and_bytes(sides: list[str], tmp_path: Path) -> None:
    source, target = exported(tmp_path, num_items=9, sides=sides)
    back = Store(tmp_path / "back")
    import_clip_retrieval(Store(target), back)
    for side in sides:
        before, after = rows_of(source, side), rows_of(back, side)
        for row in before:
            row.pop("thumbnail", None)
            row.pop("region_weights", None)
        for row in after:
            assert row.pop("thumbnail", None) is row.pop("region_weights", None) is None
        assert after == before
    again = tmp_path / "again"
    export_clip_retrieval(back, Store(again))
    files = sorted(path.relative_to(target) for path in target.rglob("*_emb_*.npy"))
    assert files
    for name in [*files, *(path.relative_to(target) for path in target.rglob("*.parquet"))]:
        assert (again / name).read_bytes() == (target / name).read_bytes(), name
    assert [verify_run(folder)[0].violations for folder in (str(target), back.uri)] == [[], []]
    facts = provenance_of(pq.read_schema(next(Path(back.uri).rglob("part-*.parquet"))))
    assert (facts["fingerprint"], facts["blocks"]) == (FINGERPRINT, BLOCKS)


def test_items_without_captions_and_captions_without_images_keep_their_place(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    write_embeddings(config, num_items=6)
    folder = tmp_path / "embeddings"
    _drop(folder / "image", lambda row: row["id"] != item_ids(6)[4])
    _drop(folder / "text", lambda row: row["item_id"] not in {item_ids(6)[0], item_ids(6)[2]})
    source, target, back = Store(folder), Store(tmp_path / "clip"), Store(tmp_path / "back")
    _rewrite_manifest(source)
    export_clip_retrieval(source, target)
    rows = [
        row
        for n in (0, 1)
        for row in pq.read_table(tmp_path / f"clip/metadata/metadata_{n}.parquet").to_pylist()
    ]
    assert sum(row["caption"] is None for row in rows) == 2
    assert sum(row["image_path"] is None for row in rows) == 2
    import_clip_retrieval(target, back)
    for side in ("image", "text"):
        assert [row["id"] for row in rows_of(back, side)] == [row["id"] for row in rows_of(source, side)]
        assert [row["vector"] for row in rows_of(back, side)] == [
            row["vector"] for row in rows_of(source, side)
        ]


def test_a_second_run_returns_at_once_and_another_source_is_refused(tmp_path: Path) -> None:
    source, target = exported(tmp_path)
    assert export_clip_retrieval(source, Store(target)).skipped
    back = Store(tmp_path / "back")
    assert not import_clip_retrieval(Store(target), back).skipped
    assert import_clip_retrieval(Store(target), back).skipped
    write_foreign(tmp_path / "other", [(unit_vectors(2, seed=1), unit_vectors(2, seed=2))])
    with pytest.raises(RefusedError, match="fingerprint"):
        import_clip_retrieval(Store(tmp_path / "other"), back, model_name="m")
    import_clip_retrieval(Store(tmp_path / "other"), back, model_name="m", overwrite=True)


def test_an_export_that_was_changed_since_is_not_taken_for_ours(tmp_path: Path) -> None:
    _, target = exported(tmp_path)
    path = target / "img_emb/img_emb_0.npy"
    np.save(path, -np.load(path))
    with pytest.raises(DataError, match="not those of their manifest"):
        import_clip_retrieval(Store(target), Store(tmp_path / "back"))


def test_the_verb_goes_both_ways_and_says_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_embeddings(run_config(tmp_path))
    embeddings, clip, back = (str(tmp_path / name) for name in ("embeddings", "clip", "back"))
    assert run(["convert", "--to", "clip-retrieval", embeddings, clip]) == 0
    assert "not carried over: thumbnail, region_weights" in capsys.readouterr().out
    assert run(["convert", "--from", "clip-retrieval", clip, back]) == 0
    assert run(["convert", embeddings, clip]) == 2
    assert run(["convert", "--to", "laion", embeddings, clip]) == 2
    assert run(["convert", "--from", "clip-retrieval", str(tmp_path / "nothing"), back]) == 3


def _drop(folder: Path, keep: Any) -> None:
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.filter(pa.array([keep(row) for row in table.to_pylist()])), path)


def _rewrite_manifest(store: Store) -> None:
    manifest = read_manifest(store)
    assert manifest is not None
    parts = [
        part_record(store, part.name, rows=pq.read_metadata(f"{store.uri}/{part.name}").num_rows)
        for part in manifest.parts
    ]
    write_manifest(store, manifest.model_copy(update={"parts": parts}))
