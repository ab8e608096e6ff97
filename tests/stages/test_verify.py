"""Everything `zscmr verify` finds, each from one change to a directory that was right, and that it finds nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from tests.stages.toy_stage import Content, ToyStage
from zscmr_ray.manifest import Manifest, part_record, read_manifest, write_manifest
from zscmr_ray.schema import image_embeddings_schema, part_name
from zscmr_ray.stages.verify import report_lines, verify_run
from zscmr_ray.stages.verify_ids import NUM_PARTITIONS, IdPartitions, hash_ids
from zscmr_ray.storage import Store

INPUT = {"a": Content(4), "b": Content(7, bad=frozenset({1, 5})), "c": Content(5)}
A, B = part_name("a"), part_name("b")
BLOCKS = [{"name": "region", "start": 0, "stop": 4}, {"name": "label", "start": 4, "stop": 6}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.stages.inline_executor import InlineExecutor
    from zscmr_ray.stages.plane import on_ray

    place = tmp_path_factory.mktemp("verify") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_ray, "RayExecutor", InlineExecutor)
        ToyStage(Store(place), INPUT).run()
    return place


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Store:
    shutil.copytree(whole, tmp_path / "store")
    return Store(tmp_path / "store")


def found_in(store: Store) -> list[str]:
    (report,) = verify_run(store.uri)
    return report.violations


def edit(store: Store, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest by hand."""
    value = store.read_json("manifest.json")
    change(value)
    store.write_json("manifest.json", value)


def replace_part(store: Store, name: str, table: pa.Table) -> None:
    """Write another part, and have the manifest agree with its checksum."""
    with store.open_write(name) as file:
        pq.write_table(table, file)
    record = part_record(store, name, rows=table.num_rows).model_dump()
    edit(
        store, lambda value: value.update(parts=[record if p["name"] == name else p for p in value["parts"]])
    )


def test_what_was_made_is_right(store: Store) -> None:
    (report,) = verify_run(store.uri)
    assert (report.violations, report.notes) == ([], [])
    assert (report.num_parts, report.num_rows) == (4, 16)
    assert report_lines(report)[0].startswith("embed      ok   4 parts, 16 rows, 0.0 MB")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            lambda s: s.write_bytes(A, s.read_bytes(A)[:-1]),
            f"{A}: a part is not the one its manifest describes",
        ),
        (lambda s: s.delete(A), f"{A}: "),
        (
            lambda s: s.write_bytes("part-0.parquet", b"x"),
            "part-0.parquet: a part that is not in the manifest",
        ),
        (lambda s: s.write_bytes("image/part-0.parquet", b""), "image/part-0.parquet: a part that is not in"),
    ],
)
def test_damaged_missing_and_stray_parts(
    store: Store, damage: Callable[[Store], None], expected: str
) -> None:
    damage(store)
    (violation,) = found_in(store)
    assert violation.startswith(expected)


def test_parts_of_an_update_in_progress_are_a_note(store: Store) -> None:
    from zscmr_ray.lease import take_lease

    store.write_bytes("part-0.parquet", b"x")
    with take_lease(store, "embed"):
        (report,) = verify_run(store.uri)
    assert report.violations == [] and "unfinished (1 new parts" in report.notes[0]
    assert len(found_in(store)) == 1


def test_rows_that_do_not_add_up_name_the_shard(store: Store) -> None:
    edit(store, lambda value: value["shards"][0]["counts"].update({"in": 99}))
    found = found_in(store)
    key = store.read_json("manifest.json")["shards"][0]["key"]
    assert any(text.startswith(f"shard {key}: rows: got 99 in") for text in found)
    assert any("manifest.json: counts" in text for text in found)


def test_tallies_are_no_rows_and_their_sums_are_checked(store: Store) -> None:
    def tally(value: dict[str, Any], total: int) -> None:
        value["shards"][0]["counts"]["tally_words"] = 7
        value["counts"]["tally_words"] = total

    edit(store, lambda value: tally(value, 7))
    assert found_in(store) == []
    edit(store, lambda value: tally(value, 8))
    assert [text.split(":")[0] for text in found_in(store)] == ["manifest.json"]


def test_a_lost_row_is_found_in_the_file(store: Store) -> None:
    replace_part(store, A, pq.read_table(store.path(A)).slice(1))
    assert found_in(store) == [f"{A}: rows of shard a: got 3, expected 4"]


@pytest.mark.parametrize("name", ["counts", "shards", "config_hash", "zscmr_schema"])
def test_a_manifest_that_contradicts_itself(store: Store, name: str) -> None:
    changes: dict[str, Callable[[dict[str, Any]], None]] = {
        "counts": lambda value: value["counts"].update(out=1),
        "shards": lambda value: value["counts"].update(shards=9),
        "config_hash": lambda value: value.update(config_hash="0" * 64),
        "zscmr_schema": lambda value: value["key"].update(zscmr_schema=99),
    }
    edit(store, changes[name])
    assert found_in(store)[0].startswith("manifest.json: ")


def test_a_repeated_id_names_both_places(store: Store) -> None:
    table = pq.read_table(store.path(A))
    ids = ["b#3", *table["id"].to_pylist()[1:]]
    replace_part(store, A, table.set_column(0, "id", pa.array(ids)))
    (violation,) = found_in(store)
    assert "id 'b#3'" in violation and A in violation and B in violation


def test_another_schema_version_and_an_unreadable_file(store: Store) -> None:
    table = pq.read_table(store.path(A))
    replace_part(store, A, table.replace_schema_metadata({}))
    store.write_bytes(B, b"no parquet")
    record = part_record(store, B, rows=5).model_dump()
    edit(store, lambda value: value.update(parts=[record if p["name"] == B else p for p in value["parts"]]))
    found = found_in(store)
    assert any(text.startswith(f"{A}: schema version: got none") for text in found)
    assert any(text.startswith(f"{B}: not a readable parquet file") for text in found)


def embeddings(store: Store, vectors: list[list[float]], **info: Any) -> None:
    """A directory of image embeddings by hand, right but for what is asked for."""
    manifest = read_manifest(store)
    assert manifest is not None
    facts: dict[str, Any] = {"fingerprint": "f" * 64, "blocks": BLOCKS}
    schema = image_embeddings_schema(
        dimension=6, num_regions=None, metadata={"config_hash": manifest.config_hash} | facts | info
    )
    rows = [
        {
            "id": f"x#{n}",
            "vector": vector,
            "labels": [],
            "source_shard": "x",
            "source_offset": n,
            "sha256": "",
        }
        for n, vector in enumerate(vectors)
    ]
    with store.open_write("image/part-1.parquet") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
    record = part_record(store, "image/part-1.parquet", rows=len(rows))
    for name in (A, B, part_name("c"), f"rejected/{B}"):
        store.delete(name)
    write_manifest(
        store, Manifest(key=manifest.key, config_hash=manifest.config_hash, parts=[record], info=facts)
    )


UNIT = [0.5, 0.5, 0.5, 0.5, 0.6, 0.8]


@pytest.mark.parametrize(
    ("vectors", "info", "expected"),
    [
        ([UNIT, UNIT], {}, None),
        ([UNIT, [float("nan"), *UNIT[1:]]], {}, "vector: got row 1 is not"),
        ([UNIT, [0.9, *UNIT[1:]]], {}, "norm of block region: got 1.2"),
        ([[*UNIT[:4], 0.6, 0.7]], {}, "norm of block label: got 0.92"),
        ([UNIT], {"fingerprint": "0" * 64}, "fingerprint: got 000"),
        ([UNIT], {"blocks": BLOCKS[:1]}, "blocks: got"),
        ([UNIT], {"config_hash": "0" * 64}, "configuration: got 000"),
    ],
)
def test_vectors_and_the_model_they_name(
    store: Store, vectors: list[list[float]], info: dict[str, Any], expected: str | None
) -> None:
    embeddings(store, vectors, **info)
    found = found_in(store)
    if expected is None:
        assert found == []
    else:
        (violation,) = found
        assert violation.startswith(f"image/part-1.parquet: {expected}")


def test_embeddings_of_another_checkpoint(store: Store, tmp_path: Path) -> None:
    embeddings(store, [UNIT])
    run = Store(tmp_path / "run")
    shutil.copytree(store.uri, run.path("embeddings"))
    checkpoint = run.child("checkpoint")
    checkpoint.write_json("meta.json", {"fingerprint": "e" * 64, "blocks": BLOCKS})
    key = store.read_json("manifest.json")["key"] | {"stage": "train"}
    manifest = {"key": key, "config_hash": "", "info": {"fingerprint": "e" * 64}}
    checkpoint.write_json("manifest.json", manifest)
    reports = {report.stage: report for report in verify_run(run.uri)}
    assert reports["embed"].violations == [f"manifest.json: fingerprint: got {'f' * 64}, expected {'e' * 64}"]
    assert reports["index"].notes == ["not complete: nothing to verify"]
    checkpoint.write_json("meta.json", {"fingerprint": "f" * 64, "blocks": BLOCKS})
    reports = {report.stage: report for report in verify_run(run.uri)}
    assert reports["embed"].violations == []
    assert any("manifest.json: fingerprint" in text for text in reports["train"].violations)


def test_ids_over_many_partitions(tmp_path: Path) -> None:
    ids = IdPartitions(tmp_path)
    for part in range(3):
        names = [f"{part}/{row}" for row in range(3000)] + (["0/7", "ünï"] if part else ["ünï"])
        ids.add(hash_ids(names[:1000], part=part, first_row=0))
        ids.add(hash_ids(names[1000:], part=part, first_row=1000))
    assert sorted(ids.repeated()) == [
        ((1, 3000), (0, 7)), ((1, 3001), (0, 3000)), ((2, 3000), (1, 3000)), ((2, 3001), (1, 3001)),
    ]  # fmt: skip
    assert len(list(tmp_path.glob("ids-*"))) == NUM_PARTITIONS
