"""A source and an encoder of numbers, with faults on demand: what the plane's tests run instead of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from zscmr_ray.errors import DataError, MissingPackageError
from zscmr_ray.schema import RejectCode, file_metadata, part_name
from zscmr_ray.stages.plane.chunks import (
    ChunkResult,
    DecodedChunk,
    EncodedChunk,
    RejectedRow,
    Shard,
    results_of,
    task_row,
)
from zscmr_ray.stages.plane.decode import DecodeShards
from zscmr_ray.stages.plane.encode import EncodeChunks
from zscmr_ray.stages.plane.staging import staging_store
from zscmr_ray.storage import Store

# Ray Data's own settings warn about themselves, and Ray leaves sockets and files to the garbage collector.
RAY_WARNINGS = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

SCHEMA = pa.schema([("id", pa.string()), ("double", pa.int64())], metadata=file_metadata({"by": "test"}))


@dataclass(frozen=True)
class Numbers:
    """A shard of n rows, in chunks of three; every fifth row is rejected, every seventh filtered.

    `crash` names a shard whose reading kills the worker after the first chunk: once when `marker` can be made, for
    good without one. `broken` cannot be read to its end, `lossy` loses a row.
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
        ids = pa.array([f"{shard.key}#{row}" for row in kept], pa.string())
        table = pa.table({"id": ids, "source_offset": pa.array(kept, pa.int64())})
        rejected = tuple(
            RejectedRow(None, shard.key, row, "read", RejectCode.EMPTY_IMAGE, "none") for row in rejects
        )
        return DecodedChunk(table, rejected, num_in=len(rows), num_filtered=len(filtered), last=last)


@dataclass(frozen=True)
class Doubler:
    """Doubles the offsets; a row named `poison` raises (`all`: every row), one named `crash` kills the process."""

    poison: str = ""
    crash: str = ""

    def bring(self, table: pa.Table) -> None:
        pass

    def encode(self, table: pa.Table, brought: None = None) -> EncodedChunk:
        ids = table["id"].to_pylist()
        if self.poison in ids or self.poison == "all":
            raise ValueError("poison")
        if self.crash in ids:
            os._exit(1)
        doubled = [2 * offset for offset in table["source_offset"].to_pylist()]
        return EncodedChunk({"": pa.table({"id": ids, "double": doubled}, schema=SCHEMA)})


@dataclass(frozen=True)
class Build:
    """Builds a `Doubler`, or fails as a backbone without its package does."""

    poison: str = ""
    crash: str = ""
    missing: bool = False

    def __call__(self) -> Doubler:
        if self.missing:
            raise MissingPackageError("no weights", remedy="pip install weights")
        return Doubler(self.poison, self.crash)


def make_shards(*rows: int) -> list[Shard]:
    """Shards s0.tar, s1.tar ... of so many rows."""
    keys = [f"s{number}.tar" for number in range(len(rows))]
    return [Shard(part_name(key), key, 100, detail={"rows": n}) for key, n in zip(keys, rows, strict=True)]


def digests(store: Store) -> dict[str, str]:
    """Hash of every file of a stage directory, the stage mark and bookkeeping left out."""
    keys = [info.key for info in store.list() if not info.key.startswith("_")]
    return {key: hashlib.sha256(store.read_bytes(key)).hexdigest() for key in keys}


def run_steps(
    store: Store, shard: Shard, *, source: Numbers | None = None, build: Build | None = None
) -> list[ChunkResult]:
    """Decode and encode one shard in this process."""
    staging = staging_store(store, 0)
    decode = DecodeShards(source or Numbers(), staging, max_failures=3, chunk_rows=3)
    encode = EncodeChunks(build or Build(), staging, max_failures=3, threads=1)
    rows = decode(pa.Table.from_pylist([task_row([shard])]))
    return [result for row in rows for result in results_of(encode(row)["results"][0].as_py())]
