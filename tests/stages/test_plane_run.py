"""The chunk and commit machinery on a real local Ray, with a source and an encoder of numbers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zscmr_ray.config import PlaneSection
from zscmr_ray.errors import DataError, MissingPackageError
from zscmr_ray.schema import RejectCode, file_metadata, part_name
from zscmr_ray.stages.plane.chunks import DecodedChunk, EncodedChunk, RejectedRow, Shard
from zscmr_ray.stages.plane.run import PlaneJob, run_plane
from zscmr_ray.storage import Store

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]

PLANE = PlaneSection(chunk_rows=3)


@dataclass(frozen=True)
class Numbers:
    """A shard of n rows, in chunks of three; every fifth row is rejected, every seventh filtered.

    `crash` names a shard whose reading kills the worker: once when `marker` can be made, for good without one.
    """

    crash: str = ""
    marker: str = ""
    broken: str = ""
    lossy: str = ""

    def read(self, shard: Shard) -> Iterator[DecodedChunk]:
        rows = shard.detail["rows"]
        starts = list(range(0, rows, 3)) or [0]
        for start in starts:
            if start and shard.key == self.crash:
                self._crash()
            if start and shard.key == self.broken:
                raise DataError("truncated", got=shard.key)
            yield self._chunk(shard, range(start, min(start + 3, rows)), last=start == starts[-1])

    def _crash(self) -> None:
        if self.marker:
            try:
                Path(self.marker).touch(exist_ok=False)
            except FileExistsError:
                return
        os._exit(1)

    def _chunk(self, shard: Shard, rows: range, *, last: bool) -> DecodedChunk:
        rejects = [row for row in rows if row % 5 == 4]
        filtered = [row for row in rows if row % 7 == 6 and row not in rejects]
        kept = [row for row in rows if row not in rejects and row not in filtered]
        if shard.key == self.lossy:
            kept = kept[1:]
        table = pa.table(
            {"id": pa.array([f"{shard.key}#{row}" for row in kept], pa.string()), "source_offset": kept}
        )
        table = table.cast(pa.schema([("id", pa.string()), ("source_offset", pa.int64())]))
        rejected = tuple(
            RejectedRow(None, shard.key, row, "read", RejectCode.EMPTY_IMAGE, "none") for row in rejects
        )
        return DecodedChunk(table, rejected, num_in=len(rows), num_filtered=len(filtered), last=last)


class Doubler:
    """Doubles the offsets; a row named in `poison` raises, `crash` kills the process."""

    def __init__(self, poison: str = "", crash: str = "") -> None:
        self.poison, self.crash = poison, crash

    def encode(self, table: pa.Table) -> EncodedChunk:
        ids = table["id"].to_pylist()
        if self.poison in ids or self.poison == "all":
            raise ValueError("poison")
        if self.crash in ids:
            os._exit(1)
        schema = pa.schema(
            [("id", pa.string()), ("double", pa.int64())], metadata=file_metadata({"by": "test"})
        )
        doubled = [2 * offset for offset in table["source_offset"].to_pylist()]
        return EncodedChunk({"": pa.table({"id": ids, "double": doubled}, schema=schema)})


@dataclass(frozen=True)
class Build:
    poison: str = ""
    crash: str = ""
    missing: bool = False

    def __call__(self) -> Doubler:
        if self.missing:
            raise MissingPackageError("no weights", remedy="pip install weights")
        return Doubler(self.poison, self.crash)


def make_shards(*rows: int) -> list[Shard]:
    keys = [f"s{number}.tar" for number in range(len(rows))]
    return [Shard(part_name(key), key, 100, detail={"rows": n}) for key, n in zip(keys, rows, strict=True)]


def make_job(store: Store, shards: list[Shard], **changes: object) -> PlaneJob:
    values: dict[str, object] = {"source": Numbers(), "build_encoder": Build(), "plane": PLANE}
    return PlaneJob(stage="test", store=store, shards=shards, **{**values, **changes})  # type: ignore[arg-type]


def bytes_of(store: Store, folder: str = "") -> dict[str, str]:
    """Digests of all output files (bookkeeping left out)."""
    keys = [info.key for info in store.list(folder) if not info.key.startswith("_")]
    return {key: hashlib.sha256(store.read_bytes(key)).hexdigest() for key in keys}


def test_all_rows_arrive_in_order_and_are_counted(ray_local: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    commits = run_plane(make_job(store, make_shards(10, 1, 0)))
    assert [commit.counts for commit in commits] == [
        {"in": 10, "out": 7, "rejected": 2, "filtered": 1},
        {"in": 1, "out": 1, "rejected": 0, "filtered": 0},
        {"in": 0, "out": 0, "rejected": 0, "filtered": 0},
    ]
    table = pq.read_table(store.path(part_name("s0.tar")))
    assert table["double"].to_pylist() == [0, 2, 4, 6, 10, 14, 16]
    rejected = pq.read_table(store.path(f"rejected/{part_name('s0.tar')}"))
    assert rejected["offset"].to_pylist() == [4, 9]
    assert not store.exists(f"rejected/{part_name('s1.tar')}")


def test_same_bytes_for_any_number_of_encoders_and_after_a_crash(ray_local: None, tmp_path: Path) -> None:
    shards = make_shards(20, 8)
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    run_plane(make_job(one, shards, plane=PlaneSection(chunk_rows=3, num_encoders=1)))
    crashing = Numbers(crash="s0.tar", marker=str(tmp_path / "crashed"))
    run_plane(make_job(two, shards, source=crashing, plane=PlaneSection(chunk_rows=3, num_encoders=2)))
    assert (tmp_path / "crashed").exists()
    assert bytes_of(one) == bytes_of(two)


def test_a_shard_that_always_crashes_its_worker_fails_alone(ray_local: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(DataError, match=r"1 of 3 shards.*s1\.tar \(its worker crashed 3 times") as caught:
        run_plane(make_job(store, make_shards(4, 9, 10), source=Numbers(crash="s1.tar")))
    assert caught.value.exit_code == 3
    assert set(bytes_of(store)) >= {part_name("s0.tar"), part_name("s2.tar")}
    assert not store.exists(part_name("s1.tar"))


def test_a_chunk_that_always_crashes_its_encoder_fails_its_shard(ray_local: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(DataError, match=r"s1\.tar \(its worker crashed 3 times while encoding chunk 1"):
        run_plane(make_job(store, make_shards(2, 9), build_encoder=Build(crash="s1.tar#3")))
    assert set(bytes_of(store)) == {part_name("s0.tar")}


def test_an_unreadable_shard_is_named_and_the_rerun_does_the_rest_only(
    ray_local: None, tmp_path: Path
) -> None:
    store, shards = Store(tmp_path), make_shards(4, 9, 10)
    with pytest.raises(DataError, match=r"s1\.tar \(truncated"):
        run_plane(make_job(store, shards, source=Numbers(broken="s1.tar")))
    done = {key: store.info(key).version for key in bytes_of(store)}
    assert part_name("s1.tar") not in done
    run_plane(make_job(store, shards))
    assert store.exists(part_name("s1.tar"))
    assert {key: store.info(key).version for key in done} == done


def test_a_row_that_cannot_be_encoded_is_rejected_alone(ray_local: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    (commit,) = run_plane(make_job(store, make_shards(6), build_encoder=Build(poison="s0.tar#1")))
    assert commit.counts == {"in": 6, "out": 4, "rejected": 2, "filtered": 0}
    assert commit.rejected == {"empty_image": 1, "encode_failed": 1}


def test_an_encoder_that_always_fails_rejects_no_row(ray_local: None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ValueError: poison"):
        run_plane(make_job(Store(tmp_path), make_shards(6), build_encoder=Build(poison="all")))


def test_a_lost_row_fails_the_stage_and_names_the_shard(ray_local: None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows were lost or added in s0\.tar"):
        run_plane(make_job(Store(tmp_path), make_shards(6), source=Numbers(lossy="s0.tar")))


def test_an_encoder_that_cannot_be_built_says_why(ray_local: None, tmp_path: Path) -> None:
    with pytest.raises(MissingPackageError, match="pip install weights"):
        run_plane(make_job(Store(tmp_path), make_shards(3), build_encoder=Build(missing=True)))
