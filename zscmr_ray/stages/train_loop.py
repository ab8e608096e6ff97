"""What every Ray Train worker runs: read its rows, train, and, on rank 0, write the checkpoint.

Workers read the pairs' parts themselves, only the rows of the split's seen classes: nothing large passes through the
object store, a restarted worker needs nobody, and the features of unseen classes are never in a training process.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.config import Config
from zscmr_ray.data.no_leak import rule_table
from zscmr_ray.data.pairs import PairFeatures
from zscmr_ray.data.splits import ClassSplit
from zscmr_ray.engine.checkpoint import save_checkpoint
from zscmr_ray.engine.collectives import rank, world_size
from zscmr_ray.engine.elastic import leave_surplus_out, usable_workers
from zscmr_ray.engine.feeding import make_feed, trained_encoders
from zscmr_ray.engine.run import MakeEngine
from zscmr_ray.engine.trained import train_model, wanted_rows
from zscmr_ray.errors import ConfigError, RefusedError, TrainingError, UnsavedStateError
from zscmr_ray.storage import Store


@dataclass(frozen=True)
class TrainJob:
    """All a worker needs to know; small, and the same for every rank.

    `info` is the pairs' manifest's; rank 0 says what it does to `stream`.
    """

    config: Config
    split: ClassSplit
    pairs: Store
    parts: tuple[str, ...]
    info: dict[str, Any]
    checkpoint: Store
    stream: TextIO | None = None


def train_loop(settings: dict[str, Any]) -> dict[str, Any]:
    """Train on this Ray Train worker; returns what rank 0 reports, or the error that every rank met alike.

    Such an error is returned and not raised: Ray would start the workers anew, to meet it again.
    """
    import torch
    from ray.train.torch import get_device

    from zscmr_ray.engine.deepspeed import DeepSpeedEngine

    job: TrainJob = settings["job"]
    device = str(get_device()) if job.config.train.use_gpu else "cpu"
    torch.set_num_threads(job.config.train.threads_per_worker)
    if not _takes_part(job):
        return {}
    try:
        return train_worker(
            job,
            device=device,
            make_engine=lambda step, total_steps: DeepSpeedEngine(
                step, config=job.config, total_steps=total_steps, device=device
            ),
        )
    except (TrainingError, ConfigError, RefusedError, UnsavedStateError) as error:
        return {"error": error}


def _takes_part(job: TrainJob) -> bool:
    """Whether this worker trains: of an elastic group as many do as divide the batch."""
    train, started = job.config.train, world_size()
    usable = usable_workers(
        started, global_batch_size=train.global_batch_size, micro_batch_size=train.micro_batch_size
    )
    if train.min_workers is None or usable == started:
        return True
    if rank() == 0:
        text = (
            f"{usable} of {started} workers train: {train.global_batch_size} rows do not divide by {started}"
        )
        print(f"train: {text}", file=job.stream or sys.stderr, flush=True)
    return leave_surplus_out(usable)


def train_worker(job: TrainJob, *, make_engine: MakeEngine, device: str = "cpu") -> dict[str, Any]:
    """Train and, on rank 0, write the checkpoint's files; returns its fingerprint and the selection. No Ray needed."""
    trained = train_model(
        job.config,
        job.split,
        read_features(job, device=device),
        info=job.info,
        store=job.checkpoint,
        make_engine=make_engine,
        device=device,
        stream=job.stream,
        keep_best=job.config.train.keep_best,
    )
    if rank() != 0:
        return {}
    signed = save_checkpoint(job.checkpoint, trained.model, trained.meta)
    return {"fingerprint": signed.fingerprint, "selection": signed.selection}


def read_features(job: TrainJob, *, device: str = "cpu") -> PairFeatures:
    """Read the rows that training and validation use, in the order of the parts; pictures where encoders are trained."""
    feed = make_feed(
        trained_encoders(job.config.model, job.info),
        max_pixels=job.config.data.max_pixels,
        cache_bytes=job.config.train.activation_cache_bytes,
        device=device,
    )
    tables = (table for part in job.parts for table in _tables(job.pairs, part, feed.columns))
    return feed.load(
        (rule_table(table, job.split) for table in tables),
        num_regions=int(job.info["num_regions"]),
        token_channels=int(job.info["token_channels"]),
        keep=lambda table: wanted_rows(
            table.column("labels").to_pylist(), table.column("partition").to_pylist(), job.split
        ),
        region_grid=job.config.model.region_grid,
        memory_bytes=job.config.train.feature_memory_bytes,
    )


def _tables(store: Store, part: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """A part's row groups one after the other: the whole of it may not fit in memory."""
    with store.open(part) as file:
        parquet = pq.ParquetFile(file, pre_buffer=False)
        for group in range(parquet.num_row_groups):
            yield parquet.read_row_group(group, columns=list(columns))
