"""The driver: runs decode and encode through Ray Data, counts results, commits shards as they complete.

Nothing in flight needs an order, and nothing of the data passes through here. A rerun is the shards without a valid
commit. Requires a running Ray; never starts or stops one.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from zscmr_ray.config import PlaneSection
from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.lease import Lease
from zscmr_ray.progress import Progress
from zscmr_ray.stages.plane.chunks import (
    ChunkResult,
    EncoderBuilder,
    Failure,
    Shard,
    Source,
    batch_shards,
    result_of,
    task_row,
)
from zscmr_ray.stages.plane.commit import Commit, Commits, commit_part, valid_commits
from zscmr_ray.stages.plane.decode import DecodeShards, failure_of
from zscmr_ray.stages.plane.encode import NOT_BUILT, EncodeChunks, error_from_json
from zscmr_ray.stages.plane.estimates import Reporter, RowEstimate
from zscmr_ray.stages.plane.resources import NodeResources, Width, fit_width
from zscmr_ray.stages.plane.staging import STAGING, shard_prefix, staging_store
from zscmr_ray.storage import Store

# Chunks waiting at an actor: one being encoded, the next ones ready beside it. More only fills the object store.
# Measured on two cores: an actor encodes as fast as a bare process (44 images per CPU-second); the plane's own cost is
# the commits (zstd, about 1 ms a row), their worker's start, and 3-5% of the machine for Ray's standing processes.
_CHUNKS_PER_ACTOR = 3
_CPUS_PER_COMMIT = 8
_NAMED_SHARDS = 20


@dataclass(frozen=True)
class PlaneJob:
    """All that one run needs: where, what, how to read and how to encode; `observe` sees every result (benchmarks).

    `redo_changed`: a shard's fingerprint is of its contents, so that a retry may do changed ones again unasked.
    """

    stage: str
    store: Store
    shards: list[Shard]
    source: Source
    build_encoder: EncoderBuilder
    plane: PlaneSection
    item_output: str = ""
    max_encoders: int | None = None
    observe: Callable[[ChunkResult], None] | None = None
    redo_changed: bool = False


def run_plane(job: PlaneJob, *, lease: Lease | None = None, config_hash: str = "") -> list[Commit]:
    """Do every shard that has no valid commit yet, and return all commits.

    The caller holds the directory's `lease` (none: it knows that nobody else writes there). Raises DataError naming the
    shards that could not be done, after all others were committed; RefusedError when the lease was lost.
    """
    commits = valid_commits(job.store, job.shards, config_hash=config_hash)
    if commits:
        print(f"{job.stage}: {len(commits)} of {len(job.shards)} shards were done before", file=sys.stderr)
    # Attempts of an earlier run do not count, and its chunks are encoded again (same bytes).
    job.store.delete_tree(STAGING)
    to = Commits(
        job.store,
        staging_store(job.store, lease.note.epoch if lease is not None else 0),
        job.item_output,
        config_hash,
        lease.fence if lease is not None else None,
    )
    reporter = Reporter(lease, job.shards, commits)
    failures: dict[str, Failure] = {}
    pending = [shard for shard in job.shards if shard.part not in commits]
    is_retry = False
    while pending:
        # A worker that crashes for good can take chunks of its neighbours in the task with it (Ray does not emit
        # again what the first attempt emitted), so what is missing is done once more, each shard on its own.
        tasks = [[shard] for shard in pending] if is_retry else batch_shards(pending)
        outcome = _execute(job, tasks, to, reporter)
        commits |= outcome.commits
        failures |= outcome.failures
        pending = [shard for shard in pending if shard.part not in commits.keys() | failures.keys()]
        if is_retry:
            failures |= {shard.part: Failure("missing", "chunks never arrived") for shard in pending}
            break
        is_retry = True
    if failures:
        raise _failed_shards(job, failures)
    return [commits[shard.part] for shard in job.shards]


@dataclass
class _Outcome:
    commits: dict[str, Commit] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)


def _execute(job: PlaneJob, tasks: list[list[Shard]], to: Commits, reporter: Reporter) -> _Outcome:
    shards = {shard.part: shard for task in tasks for shard in task}
    committer = _Committer(to)
    arrived: dict[str, dict[int, ChunkResult]] = {}
    estimate = RowEstimate(list(shards.values()))
    with Progress(job.stage, total=estimate.total, unit="rows") as progress:
        for result in _results(job, tasks, to.staging):
            if job.observe is not None:
                job.observe(result)
            chunks = arrived.setdefault(result.part, {})
            if result.index not in chunks:
                progress.advance(result.num_in, note=f"{committer.num_done}/{len(shards)} shards")
            chunks[result.index] = result
            if _is_whole(chunks):
                shard, whole = shards[result.part], list(arrived.pop(result.part).values())
                total = estimate.after(shard, sum(result.num_in for result in whole))
                progress.expect(max(total, progress.done))
                committer.submit(shard, whole)
            reporter.report(progress, num_done=committer.num_done, num_failed=len(committer.outcome.failures))
        progress.expect(progress.done)
        outcome = committer.finish()
        reporter.report(progress, num_done=len(outcome.commits), num_failed=len(outcome.failures))
        return outcome


def _is_whole(chunks: dict[int, ChunkResult]) -> bool:
    last = [index for index, result in chunks.items() if result.last]
    return bool(last) and len(chunks) == last[0] + 1


class _Committer:
    """Commits shards in Ray tasks of their own, a few at a time, while encoding goes on.

    They ask for no logical CPU: a commit must never wait for one that the pipeline holds. Few at once: each is a
    worker whose start costs 1.5 CPU-seconds, which two cores miss, and one commits 1,000 rows of features a second.
    """

    def __init__(self, to: Commits) -> None:
        self._max_running = max(1, int(ray.cluster_resources().get("CPU", 1)) // _CPUS_PER_COMMIT)
        self._task = ray.remote(num_cpus=0, max_retries=3)(_commit)
        self._to = to
        self._running: dict[Any, str] = {}
        self.outcome = _Outcome()

    @property
    def num_done(self) -> int:
        return len(self.outcome.commits)

    def submit(self, shard: Shard, results: list[ChunkResult]) -> None:
        failed = [result for result in results if result.failure is not None]
        if failed:
            assert failed[0].failure is not None
            self.outcome.failures[shard.part] = failed[0].failure
            return
        reference = self._task.remote(self._to, shard, results)
        self._running[reference] = shard.part
        self._collect(wait=len(self._running) >= self._max_running)

    def finish(self) -> _Outcome:
        while self._running:
            self._collect(wait=True)
        return self.outcome

    def _collect(self, *, wait: bool) -> None:
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=None if wait else 0)
        for reference in done:
            part = self._running.pop(reference)
            outcome = ray.get(reference)
            if isinstance(outcome, Failure):
                self.outcome.failures[part] = outcome
            else:
                self.outcome.commits[part] = outcome
                self._to.staging.delete_tree(shard_prefix(part))


def _commit(to: Commits, shard: Shard, results: list[ChunkResult]) -> Commit | Failure:
    try:
        return commit_part(to, shard, results)
    except RefusedError:
        # Not this shard's failure: the whole run has lost its directory.
        raise
    except Exception as error:
        return failure_of(error)


def _results(job: PlaneJob, tasks: list[list[Shard]], staging: Store) -> Iterator[ChunkResult]:
    """Stream the results of decode and encode, in whatever order they come."""
    width = cluster_width(job.plane, max_encoders=job.max_encoders)
    with _data_context():
        dataset = ray.data.from_items([task_row(task) for task in tasks], override_num_blocks=len(tasks))
        chunks = dataset.map_batches(
            DecodeShards(job.source, staging, max_failures=job.plane.max_shard_failures).__call__,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=width.decode_cpus,
        )
        results = chunks.map_batches(
            EncodeChunks,
            fn_constructor_args=(job.build_encoder, staging),
            fn_constructor_kwargs={
                "max_failures": job.plane.max_shard_failures,
                "threads": job.plane.encoder_threads,
            },
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(
                size=width.num_encoders, max_tasks_in_flight_per_actor=_CHUNKS_PER_ACTOR
            ),
            num_cpus=width.encoder_cpus,
            num_gpus=job.plane.encoder_gpus,
        )
        for row in results.iter_rows():
            result = result_of(row["result"])
            if result.failure is not None and result.failure.code == NOT_BUILT:
                raise error_from_json(result.failure.reason)
            yield result


def cluster_width(plane: PlaneSection, *, max_encoders: int | None = None) -> Width:
    """Fit the encoders to the cluster that is connected."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [NodeResources(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in resources]
    return fit_width(nodes, plane, max_encoders=max_encoders)


@contextlib.contextmanager
def _data_context() -> Iterator[None]:
    """Ray Data set up for chunks, and its chatter off, for the length of a block."""
    context = DataContext.get_current()
    names = ("target_max_block_size", "enable_progress_bars", "print_on_execution_start")
    before = {name: getattr(context, name) for name in names}
    log = logging.getLogger("ray.data")
    level = log.level
    # Blocks otherwise fill up to 128 MiB, seconds of work, before the first chunk travels. One byte = one row each.
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Fewer chunks than encoders is no fault: tiny inputs and the rerun of a single shard.
            warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
            yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


def _failed_shards(job: PlaneJob, failures: dict[str, Failure]) -> DataError:
    keys = {shard.part: shard.key for shard in job.shards}
    named = [f"{keys[part]} ({failure.reason})" for part, failure in sorted(failures.items())]
    more = f" and {len(named) - _NAMED_SHARDS} more" if len(named) > _NAMED_SHARDS else ""
    return DataError(
        f"{job.stage}: {len(failures)} of {len(job.shards)} shards could not be done; the others are committed",
        got="; ".join(named[:_NAMED_SHARDS]) + more,
        expected="every shard readable",
        remedy="run the same command again if the cause has passed; else repair or remove these shards "
        "and run with --overwrite",
    )
