"""The driver: has shards decoded and encoded, counts results, commits shards as they complete.

Nothing in flight needs an order, and nothing of the data passes through here. A rerun is the shards without a valid
commit. What runs the steps is an `Executor`: Ray (`on_ray.py`), or a plain loop in the tests of every crash point.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from zscmr_ray.config import PlaneSection
from zscmr_ray.errors import DataError, StorageError
from zscmr_ray.lease import Lease
from zscmr_ray.progress import Progress
from zscmr_ray.stages.plane.chunks import (
    ChunkResult,
    EncoderBuilder,
    Failure,
    Shard,
    Source,
    batch_shards,
)
from zscmr_ray.stages.plane.commit import Commit, CommitOutcomes, Commits, valid_commits
from zscmr_ray.stages.plane.decode import STORAGE
from zscmr_ray.stages.plane.encode import raise_what_ends_run
from zscmr_ray.stages.plane.estimates import Reporter, RowEstimate
from zscmr_ray.stages.plane.forecast import Probe, estimate_run
from zscmr_ray.stages.plane.ledger import Ledger, end_lines, end_note
from zscmr_ray.stages.plane.resources import Fleet
from zscmr_ray.stages.plane.staging import STAGING, staging_store
from zscmr_ray.storage import Store

_NAMED_SHARDS = 20
# So many shards in a row that the storage failed, each after all its retries: the next ones would only wait as long.
_STORAGE_FAILURES = 3


@dataclass(frozen=True)
class PlaneJob:
    """All that one run needs: where, what, how to read and how to encode; `observe` sees every result (benchmarks).

    `probe` is what an estimate was made of, for the run's end to compare. `redo_changed`: a shard's fingerprint is of its
    contents, so that a retry may do changed ones again unasked. `autoscales`: nodes come while work waits for them.
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
    probe: Probe | None = None
    redo_changed: bool = False
    autoscales: bool = False


class Executor(Protocol):
    """Runs the steps of a plane: `decode.py` and `encode.py` in any order, and `commit.py` beside them.

    `max_commits` is how many tasks of commits may be under way at once. Exceptions of a step are results (`Failure`); what is
    raised ends the run.
    """

    max_commits: int

    def fleet(self, job: PlaneJob) -> Fleet:
        """How much works at once on the job."""
        ...

    def results(self, job: PlaneJob, tasks: list[list[Shard]], to: Commits) -> Iterator[list[ChunkResult]]:
        """Decode and encode every shard of the tasks, and yield what became of its chunks, a bundle as it is there.

        A shard may be committed as well; its last result then has the commit.
        """
        ...

    def begin_commits(self, to: Commits, work: list[tuple[Shard, list[ChunkResult]]]) -> None:
        """Begin `commit.try_commits` for shards whose chunks are all there."""
        ...

    def ended_commits(self, *, wait: bool) -> list[CommitOutcomes]:
        """What has ended since the last call, each as it was begun; `wait` for one when there is none."""
        ...


def run_plane(
    job: PlaneJob, *, lease: Lease | None = None, config_hash: str = "", executor: Executor | None = None
) -> list[Commit]:
    """Do every shard that has no valid commit yet, and return all commits.

    Without an `executor` it is a running Ray, never started or stopped here. The caller holds the directory's `lease`
    (none: it knows that nobody else writes there). Raises DataError naming the shards that could not be done, after all
    others were committed; StorageError when the storage is away or full; RefusedError when the lease was lost.
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
    ledger = Ledger()
    while pending:
        if executor is None:
            from zscmr_ray.stages.plane.on_ray import RayExecutor

            executor = RayExecutor()
        if job.probe is not None and lease is not None and not is_retry:
            rows = round(job.probe.shard_rows * len(pending))
            lease.report(estimate=estimate_run(job.probe, executor.fleet(job), rows).as_json())
        # A worker that crashes for good can take chunks of its neighbours in the task with it (Ray does not emit
        # again what the first attempt emitted), so what is missing is done once more, each shard on its own.
        tasks = [[shard] for shard in pending] if is_retry else batch_shards(pending)
        outcome = _execute(job, tasks, to, reporter, executor, ledger)
        commits |= outcome.commits
        failures |= outcome.failures
        known = commits.keys() | failures.keys()
        pending = [shard for shard in pending if shard.part not in known]
        if is_retry:
            failures |= {shard.part: Failure("missing", "chunks never arrived") for shard in pending}
            break
        is_retry = True
    if executor is not None:
        _say_end(job, ledger, executor.fleet(job), lease)
    if failures:
        raise _failed_shards(job, failures)
    return [commits[shard.part] for shard in job.shards]


@dataclass
class _Outcome:
    commits: dict[str, Commit] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)


def _execute(
    job: PlaneJob,
    tasks: list[list[Shard]],
    to: Commits,
    reporter: Reporter,
    executor: Executor,
    ledger: Ledger,
) -> _Outcome:
    shards = {shard.part: shard for task in tasks for shard in task}
    committer = _Committer(to, executor, ledger)
    arrived: dict[str, dict[int, ChunkResult]] = {}
    estimate = RowEstimate(list(shards.values()))
    with Progress(job.stage, total=estimate.total, unit="rows") as progress:
        for bundle in executor.results(job, tasks, to):
            whole = []
            for result in bundle:
                raise_what_ends_run(result.failure)
                if job.observe is not None:
                    job.observe(result)
                chunks = arrived.setdefault(result.part, {})
                if result.index not in chunks:
                    ledger.add(result)
                    progress.advance(result.num_in, note=f"{committer.num_done}/{len(shards)} shards")
                chunks[result.index] = result
                if _is_whole(chunks):
                    whole.append((shards[result.part], list(arrived.pop(result.part).values())))
                    total = estimate.after(whole[-1][0], sum(result.num_in for result in whole[-1][1]))
                    progress.expect(max(total, progress.done))
            committer.submit(whole)
            reporter.report(progress, num_done=committer.num_done, num_failed=len(committer.outcome.failures))
        progress.expect(progress.done)
        outcome = committer.finish()
        reporter.report(progress, num_done=len(outcome.commits), num_failed=len(outcome.failures))
        return outcome


def _is_whole(chunks: dict[int, ChunkResult]) -> bool:
    last = [index for index, result in chunks.items() if result.last]
    return bool(last) and len(chunks) == last[0] + 1


class _Committer:
    """Commits shards as they become whole, while encoding goes on."""

    def __init__(self, to: Commits, executor: Executor, ledger: Ledger) -> None:
        self._to, self._executor, self._ledger = to, executor, ledger
        self._num_running = self._num_storage_failures = 0
        self.outcome = _Outcome()

    @property
    def num_done(self) -> int:
        return len(self.outcome.commits)

    def submit(self, whole: list[tuple[Shard, list[ChunkResult]]]) -> None:
        work = []
        for shard, results in whole:
            failures = [result.failure for result in results if result.failure is not None]
            commits = [result.commit for result in results if result.commit]
            if failures:
                self._fail(shard.part, failures[0])
            elif commits:
                self._note(shard.part, Commit.model_validate_json(commits[0]))
            else:
                work.append((shard, results))
        if not work:
            return
        self._executor.begin_commits(self._to, work)
        self._ledger.begin_commits(work[0][0].part)
        self._num_running += 1
        self._collect(wait=self._num_running >= self._executor.max_commits)

    def finish(self) -> _Outcome:
        while self._num_running:
            self._collect(wait=True)
        return self.outcome

    def _collect(self, *, wait: bool) -> None:
        for outcomes in self._executor.ended_commits(wait=wait):
            self._num_running -= 1
            self._ledger.end_commits(outcomes[0][0])
            for part, outcome in outcomes:
                if isinstance(outcome, Failure):
                    self._fail(part, outcome)
                else:
                    self._note(part, outcome)

    def _note(self, part: str, commit: Commit) -> None:
        self._num_storage_failures = 0
        self.outcome.commits[part] = commit

    def _fail(self, part: str, failure: Failure) -> None:
        self.outcome.failures[part] = failure
        self._num_storage_failures = self._num_storage_failures + 1 if failure.code == STORAGE else 0
        if self._num_storage_failures == _STORAGE_FAILURES:
            raise StorageError(
                f"stopped, because the storage failed for {_STORAGE_FAILURES} shards in a row",
                got=failure.reason,
                remedy="when the storage is well again, run the same command: it goes on where it stopped",
            )


def _say_end(job: PlaneJob, ledger: Ledger, fleet: Fleet, lease: Lease | None) -> None:
    usage = ledger.usage(fleet)
    if usage is None:
        return
    for line in end_lines(usage, job.probe):
        print(f"{job.stage}: {line}", file=sys.stderr)
    if lease is not None:
        lease.report(usage=end_note(usage))


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
