"""A plane stage of numbers whose shards can be added, changed and repaired: what updates of a directory are tested on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from tests.stages.numbers import Build
from zscmr_ray.claim import Update
from zscmr_ray.config import PlaneSection
from zscmr_ray.manifest import Manifest, StageKey, hash_json
from zscmr_ray.schema import RejectCode, part_name
from zscmr_ray.stages.plane.chunks import DecodedChunk, RejectedRow, Shard
from zscmr_ray.stages.plane.directory import run_directory
from zscmr_ray.stages.plane.run import PlaneJob
from zscmr_ray.storage import Store

_CHUNK_ROWS = 3


@dataclass(frozen=True)
class Content:
    """A shard: so many rows, of which some are bad; another `version` is another content."""

    rows: int
    bad: frozenset[int] = frozenset()
    version: int = 0

    def detail(self) -> dict[str, object]:
        return {"rows": self.rows, "bad": sorted(self.bad), "version": self.version}


@dataclass(frozen=True)
class Rows:
    """Reads a shard as its detail says; a `plane.chunks.Source`."""

    def read(self, shard: Shard) -> Iterator[DecodedChunk]:
        count, bad = shard.detail["rows"], shard.detail["bad"]
        starts = list(range(0, count, _CHUNK_ROWS)) or [0]
        for start in starts:
            rows = range(start, min(start + _CHUNK_ROWS, count))
            kept = [row for row in rows if row not in bad]
            ids = pa.array([f"{shard.key}#{row}" for row in kept], pa.string())
            offsets = pa.array([row + 1000 * shard.detail["version"] for row in kept], pa.int64())
            rejects = tuple(
                RejectedRow(None, shard.key, row, "read", RejectCode.EMPTY_IMAGE, "none")
                for row in rows
                if row in bad
            )
            table = pa.table({"id": ids, "source_offset": offsets})
            yield DecodedChunk(table, rejects, len(rows), 0, last=start == starts[-1])


@dataclass
class ToyStage:
    """A directory and the input it is made of."""

    store: Store
    shards: dict[str, Content] = field(default_factory=dict)
    config: dict[str, int] = field(default_factory=dict)
    redo_changed: bool = False
    source: Rows = field(default_factory=Rows)

    @property
    def key(self) -> StageKey:
        contents = {key: content.detail() for key, content in sorted(self.shards.items())}
        return StageKey(stage="embed", config=self.config, input_fingerprint=hash_json(contents))

    def job(self) -> PlaneJob:
        shards = [
            Shard(part_name(key), key, 100, detail=content.detail())
            for key, content in sorted(self.shards.items())
        ]
        return PlaneJob(
            stage="embed",
            store=self.store,
            shards=shards,
            source=self.source,
            build_encoder=Build(),
            plane=PlaneSection(chunk_rows=_CHUNK_ROWS),
            redo_changed=self.redo_changed,
        )

    def run(self, update: Update | None = None, *, overwrite: bool = False) -> tuple[Manifest, bool]:
        return run_directory(
            self.store, self.key, self.job, info={"by": "toy"}, overwrite=overwrite, update=update
        )
