"""The plane's steps on Ray: decode and encode through Ray Data, commits where a shard was encoded or in tasks of their own.

Requires a running Ray; never starts or stops one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import warnings
from collections.abc import Iterator, Sized
from typing import TYPE_CHECKING, Any, ClassVar

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data._internal.execution.execution_callback import ExecutionCallback

from zscmr_ray.config import PlaneSection
from zscmr_ray.stages.plane.chunks import ChunkResult, Shard, results_of, split_tasks, task_row
from zscmr_ray.stages.plane.commit import CommitOutcomes, Commits, try_commits
from zscmr_ray.stages.plane.decode import DecodeShards
from zscmr_ray.stages.plane.encode import EncodeChunks
from zscmr_ray.stages.plane.resources import (
    TASKS_PER_WORKER,
    Fleet,
    NodeResources,
    Width,
    commits_at_once,
    fit_width,
    fleet_of,
    works_together,
)
from zscmr_ray.stages.plane.together import EmbedShards

if TYPE_CHECKING:
    from zscmr_ray.stages.plane.run import PlaneJob

# Chunks waiting at an actor: one being encoded, the next ones ready beside it. More only fills the object store.
# Measured on two cores: an actor encodes as fast as a bare process (44 images per CPU-second); the plane's own cost is
# the commits (zstd, about 1 ms a row), their worker's start, and 3-5% of the machine for Ray's standing processes.
_CHUNKS_PER_ACTOR = 3
# One encodes, the other brings pixels and writes (`encode.py`).
_CALLS_BESIDE_GPU = 2
# Shards' tasks at an actor that does both steps: the next one is there when one ends.
_TASKS_PER_ACTOR = 2
# Ray Data's loop turns ten times a second, 3 ms each: 3% of a core, and .7% at two turns. It rests for a part of the time
# it has run, so that a short job waits for nothing, and never for longer than an actor's next task has work.
_REST_SHARE, _MAX_REST_S = 0.02, 0.5
# Only insurance: the loop's turns say when there is something to take.
_MAX_WAIT_S = 5.0


class RayExecutor:
    """A `plane.run.Executor` on the connected cluster.

    Commits ask for no logical CPU: a commit must never wait for one that the pipeline holds. Few at once: each is a
    worker whose start costs 1.5 CPU-seconds, which two cores miss, and one commits 1,000 rows of features a second.
    """

    def __init__(self) -> None:
        self.max_commits = commits_at_once(ray.cluster_resources().get("CPU", 1))
        self._task = ray.remote(num_cpus=0, max_retries=3)(try_commits)
        self._running: list[Any] = []

    def fleet(self, job: PlaneJob) -> Fleet:
        """How wide the job runs here."""
        return fleet_of(cluster_nodes(), job.plane, max_encoders=job.max_encoders, autoscales=job.autoscales)

    def results(self, job: PlaneJob, tasks: list[list[Shard]], to: Commits) -> Iterator[list[ChunkResult]]:
        """Stream the results of decode and encode, a bundle at a time, in whatever order they come."""
        width = fit_width(
            cluster_nodes(), job.plane, max_encoders=job.max_encoders, autoscales=job.autoscales
        )
        decode = DecodeShards(
            job.source, to.staging, max_failures=job.plane.max_shard_failures, chunk_rows=job.plane.chunk_rows
        )
        shared = split_tasks(tasks, at_least=TASKS_PER_WORKER * width.num_encoders)
        together = works_together(job.plane, width, [sum(s.size_bytes for s in task) for task in shared])
        # A worker less, which costs 1.5 CPU-seconds to start and .8% of a core to keep. A bucket answers slowly: there
        # others commit meanwhile.
        commits = to if together and to.store.is_local else None
        if commits is None:
            # Nothing to commit, but the worker that will: its start falls into that of the encoders, not into their work.
            self._task.remote(None, [])
        with _data_context(rests=together):
            if together:
                rows = _rows_when_there(_together(job, shared, decode, width, commits))
            else:
                rows = (row["results"] for row in _apart(job, tasks, decode, width).iter_rows())
            for row in rows:
                yield results_of(row)

    def begin_commits(self, to: Commits, work: list[tuple[Shard, list[ChunkResult]]]) -> None:
        """Start a task."""
        self._running.append(self._task.remote(to, work))

    def ended_commits(self, *, wait: bool) -> list[CommitOutcomes]:
        """The next task of commits that has ended, if there is one."""
        done, self._running = ray.wait(self._running, num_returns=1, timeout=None if wait else 0)
        return [ray.get(reference) for reference in done]


def _together(
    job: PlaneJob, tasks: list[list[Shard]], decode: DecodeShards, width: Width, commits: Commits | None
) -> Dataset:
    """Both steps in each of the encoder actors, and commits."""
    return _tasks(tasks).map_batches(
        EmbedShards,
        fn_constructor_args=(decode, job.build_encoder),
        fn_constructor_kwargs={"threads": job.plane.encoder_threads, "commits": commits},
        batch_size=1,
        batch_format="pyarrow",
        compute=_actors(min(width.num_encoders, len(tasks)), in_flight=_TASKS_PER_ACTOR),
        num_cpus=width.encoder_cpus,
        num_gpus=job.plane.encoder_gpus,
    )


def _apart(job: PlaneJob, tasks: list[list[Shard]], decode: DecodeShards, width: Width) -> Dataset:
    """Decode in tasks, encode in actors, chunks through the object store between them."""
    chunks = _tasks(tasks).map_batches(
        decode.__call__, batch_size=1, batch_format="pyarrow", num_cpus=width.decode_cpus
    )
    return chunks.map_batches(
        EncodeChunks,
        fn_constructor_args=(job.build_encoder, decode.store),
        fn_constructor_kwargs={
            "max_failures": job.plane.max_shard_failures,
            "threads": job.plane.encoder_threads,
        },
        batch_size=1,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=_actors(
            width.num_encoders,
            in_flight=_CHUNKS_PER_ACTOR,
            calls=calls_at_once(job.plane),
        ),
        num_cpus=width.encoder_cpus,
        num_gpus=job.plane.encoder_gpus,
    )


def calls_at_once(plane: PlaneSection) -> int:
    """Chunks that one encoder has in hand: two beside a GPU, of which one is encoded."""
    return _CALLS_BESIDE_GPU if plane.encoder_gpus else 1


def _tasks(tasks: list[list[Shard]]) -> Dataset:
    return ray.data.from_items([task_row(task) for task in tasks], override_num_blocks=len(tasks))


def _actors(size: int, *, in_flight: int, calls: int = 1) -> ActorPoolStrategy:
    return ActorPoolStrategy(
        size=size,
        max_tasks_in_flight_per_actor=in_flight,
        max_concurrent_calls_per_actor=calls,
        enable_true_multi_threading=calls > 1,
    )


def cluster_nodes() -> list[NodeResources]:
    """The alive nodes of the cluster that is connected."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [NodeResources(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in resources]


class _Rests(ExecutionCallback):
    """Lets Ray Data's loop rest between its turns, and says what they left; made by Ray Data, one for each run.

    No rest once fewer tasks are under way than before: the end is near, and somebody waits for it. What the turns left is the
    class's, as Ray Data tells nobody which one it made: one run at a time is under way.
    """

    _news: ClassVar[threading.Event] = threading.Event()
    _queue: ClassVar[Sized] = ()
    _is_complete: ClassVar[bool] = False

    def before_execution_starts(self, executor: Any) -> None:
        self._began_s, self._most_tasks = time.monotonic(), 0
        _Rests._queue, _Rests._is_complete = (), False

    def on_execution_step(self, executor: Any) -> None:
        operator, output = executor._output_node
        _Rests._queue, _Rests._is_complete = output.output_queue, operator.has_completed()
        if self._has_news():
            self._news.set()
        num_tasks = operator.num_active_tasks()
        self._most_tasks = max(self._most_tasks, num_tasks)
        if num_tasks == self._most_tasks:
            time.sleep(rest_s(time.monotonic() - self._began_s))

    @classmethod
    def wait_for_news(cls) -> None:
        """Wait until there is a block to take, or none to come."""
        cls._news.clear()
        if not cls._has_news():
            cls._news.wait(_MAX_WAIT_S)

    @classmethod
    def _has_news(cls) -> bool:
        return cls._is_complete or bool(len(cls._queue))


def _rows_when_there(dataset: Dataset) -> Iterator[str]:
    """The rows of results of a dataset that runs under `_Rests`.

    Ray Data waits for its next block by looking a hundred times a second, and each look takes the core from the work: .9% of
    a core. So it is asked only when there is one.
    """
    bundles = iter(dataset.iter_internal_ref_bundles())
    while True:
        _Rests.wait_for_news()
        bundle = next(bundles, None)
        if bundle is None:
            return
        for block in ray.get([entry.ref for entry in bundle.blocks]):
            yield from block["results"].to_pylist()


def rest_s(running_s: float) -> float:
    """How long Ray Data's loop rests after a turn, when it has run so long.

    >>> rest_s(1.0), rest_s(3600.0)
    (0.02, 0.5)
    """
    return min(_MAX_REST_S, _REST_SHARE * running_s)


@contextlib.contextmanager
def _data_context(*, rests: bool) -> Iterator[None]:
    """Ray Data set up for chunks, and its chatter off, for the length of a block; its loop may rest where tasks are long."""
    context = DataContext.get_current()
    names = (
        "target_max_block_size",
        "enable_progress_bars",
        "print_on_execution_start",
        "custom_execution_callback_classes",
    )
    before = {name: getattr(context, name) for name in names}
    log = logging.getLogger("ray.data")
    level = log.level
    # Blocks otherwise fill up to 128 MiB, seconds of work, before the first chunk travels. One byte = one row each.
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if rests:
        context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _Rests]
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
