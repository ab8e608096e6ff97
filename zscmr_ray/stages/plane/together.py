"""Decode, encode and commit in one process: an actor that takes shards; what it decodes never leaves it.

Between processes a decoded picture (150 KB) is copied into a chunk, an IPC stream and the object store, and two more
processes wake for it: 1.3 of 6.3 CPU-ms a picture on two cores. The same steps on the same chunks, so the same bytes.
When it is used: `resources.works_together`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from zscmr_ray.errors import RefusedError
from zscmr_ray.stages.plane.chunks import (
    ChunkResult,
    EncoderBuilder,
    Failure,
    Shard,
    results_row,
    shards_of_task,
)
from zscmr_ray.stages.plane.commit import Commit, CommitOutcomes, Commits, try_commits
from zscmr_ray.stages.plane.decode import DecodeShards
from zscmr_ray.stages.plane.encode import ENDS_RUN, EncodeChunks, error_to_json
from zscmr_ray.stages.plane.staging import HeldChunks, end_attempt, note_attempt

# Each row of results costs the driver some 8 ms of Ray Data's loop: 2% of two cores with a row for every 64 pictures, and
# its Python 3.3% of a core with a row for 256, 1.2% for 512.
_BUNDLES_PER_ROW = 8
_COMMIT = "commit"
_HELD_BYTES = 32 << 20


class EmbedShards:
    """Callable class for `map_batches` over task rows; the steps' own options. Without `commits` the driver has them made."""

    def __init__(
        self, decode: DecodeShards, build: EncoderBuilder, *, threads: int, commits: Commits | None = None
    ) -> None:
        self.held = None if commits is None else HeldChunks(_HELD_BYTES)
        self.decode, self.commits = decode, None if commits is None else replace(commits, held=self.held)
        self.encode = EncodeChunks(
            build, decode.store, max_failures=decode.max_failures, threads=threads, held=self.held
        )

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield a row of results for the first bundle of chunks, and then for each few, when their tables are staged.

        How they are grouped depends on the task alone: Ray takes the n-th row of a repeated task for the n-th of the first.
        """
        shards = {shard.part: shard for shard in shards_of_task(batch)}
        begun: dict[str, list[ChunkResult]] = {}
        unsent: list[ChunkResult] = []
        for number, bundle in enumerate(self.decode.bundles(batch)):
            whole = []
            for chunk in bundle:
                is_noted = chunk.header["part"] in self.decode.noted
                result = self.encode.result(chunk.header, chunk.table, is_noted=is_noted)
                begun.setdefault(result.part, []).append(result)
                unsent.append(result)
                if result.last:
                    whole.append((shards[result.part], begun.pop(result.part)))
            if self.commits is not None:
                unsent = self._committed(unsent, whole, self.commits)
            if number % _BUNDLES_PER_ROW == 0:
                yield results_row(unsent)
                unsent = []
        if unsent:
            yield results_row(unsent)

    def _committed(
        self, unsent: list[ChunkResult], whole: list[tuple[Shard, list[ChunkResult]]], commits: Commits
    ) -> list[ChunkResult]:
        """The results, with the commit of each shard that is whole in its last one, or with what prevented it."""
        work = [one for one in whole if all(result.failure is None for result in one[1])]
        began_s = time.perf_counter()
        outcomes = dict(self._try_commits(work, commits) if work else [])
        for shard, _ in whole:
            if self.held is not None:
                self.held.drop(shard.part)
        if not work:
            return unsent
        commit_s = (time.perf_counter() - began_s) / len(work)
        return [
            _with_outcome(result, outcomes[result.part], commit_s)
            if result.last and result.part in outcomes
            else result
            for result in unsent
        ]

    def _try_commits(self, work: list[tuple[Shard, list[ChunkResult]]], commits: Commits) -> CommitOutcomes:
        # One note for all: which of them takes its worker with it is not known, and a repeated task has the same bundles.
        attempt = note_attempt(commits.staging, work[0][0].part, what=_COMMIT)
        if refusal := attempt.refusal(self.decode.max_failures, doing="while committing it"):
            return [(shard.part, refusal) for shard, _ in work]
        try:
            outcomes = try_commits(commits, work)
        except RefusedError as error:
            return [(shard.part, Failure(ENDS_RUN, error_to_json(error))) for shard, _ in work]
        end_attempt(commits.staging, attempt)
        return outcomes


def _with_outcome(result: ChunkResult, outcome: Commit | Failure, commit_s: float) -> ChunkResult:
    if isinstance(outcome, Failure):
        return replace(result, failure=outcome)
    return replace(result, commit=outcome.model_dump_json(), effort=replace(result.effort, commit_s=commit_s))
