"""The plane's steps in this process, one chunk after another: the same driver, without Ray and its seconds.

For what does not depend on Ray: what is written, in which order, and what a rerun makes of it. Scheduling, crashes of
workers and widths are tested on a real one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from zscmr_ray.stages.plane import on_ray
from zscmr_ray.stages.plane.chunks import ChunkResult, Shard, results_of, task_row
from zscmr_ray.stages.plane.commit import CommitOutcomes, Commits, try_commits
from zscmr_ray.stages.plane.decode import DecodeShards
from zscmr_ray.stages.plane.encode import EncodeChunks
from zscmr_ray.stages.plane.resources import Fleet
from zscmr_ray.stages.plane.run import PlaneJob


class InlineExecutor:
    """A `plane.run.Executor` in this process."""

    max_commits = 1

    def __init__(self) -> None:
        self._ended: list[CommitOutcomes] = []

    def fleet(self, job: PlaneJob) -> Fleet:
        return Fleet(1, 1, num_encoders=1, encoder_threads=1, num_decoders=1, num_commits=1)

    def results(self, job: PlaneJob, tasks: list[list[Shard]], to: Commits) -> Iterator[list[ChunkResult]]:
        decode = DecodeShards(
            job.source,
            to.staging,
            max_failures=job.plane.max_shard_failures,
            chunk_rows=job.plane.chunk_rows,
        )
        encode = EncodeChunks(
            job.build_encoder,
            to.staging,
            max_failures=job.plane.max_shard_failures,
            threads=job.plane.encoder_threads,
        )
        for task in tasks:
            for row in decode(pa.Table.from_pylist([task_row(task)])):
                yield results_of(encode(row)["results"][0].as_py())

    def begin_commits(self, to: Commits, work: list[tuple[Shard, list[ChunkResult]]]) -> None:
        self._ended.append(try_commits(to, work))

    def ended_commits(self, *, wait: bool) -> list[CommitOutcomes]:
        ended, self._ended = self._ended, []
        return ended


@pytest.fixture
def inline_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run their plane jobs in this process."""
    monkeypatch.setattr(on_ray, "RayExecutor", InlineExecutor)
