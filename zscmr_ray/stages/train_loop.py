"""What every Ray Train worker runs: read its rows, train, and, on rank 0, write the checkpoint.

Workers read the pairs' parts themselves, only the rows of the split's seen classes: nothing large passes through the
object store, a restarted worker needs nobody, and the features of unseen classes are never in a training process.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.config import Config
from zscmr_ray.data.no_leak import rule_table
from zscmr_ray.data.pairs import COLUMNS, PairFeatures, load_pair_features
from zscmr_ray.data.splits import ClassSplit, training_rows
from zscmr_ray.engine.base import model_architecture
from zscmr_ray.engine.checkpoint import BlockRecord, CheckpointMeta, save_checkpoint
from zscmr_ray.engine.collectives import rank
from zscmr_ray.engine.run import MakeEngine, Outcome, TrainingRun
from zscmr_ray.errors import ConfigError, TrainingError
from zscmr_ray.models.build import build_model
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
    try:
        return train_worker(
            job,
            device=device,
            make_engine=lambda step, total_steps: DeepSpeedEngine(
                step, config=job.config, total_steps=total_steps, device=device
            ),
        )
    except (TrainingError, ConfigError) as error:
        return {"error": error}


def train_worker(job: TrainJob, *, make_engine: MakeEngine, device: str = "cpu") -> dict[str, Any]:
    """Train and, on rank 0, write the checkpoint's files; returns its fingerprint and the selection. No Ray needed."""
    features = read_features(job)
    architecture = model_architecture(
        job.config,
        image_channels=int(job.info["image_channels"]),
        text_channels=int(job.info["token_channels"]),
        num_classes=int(job.info["num_classes"] or 0),
    )
    run = TrainingRun(
        job.config,
        job.split,
        features,
        architecture=architecture,
        store=job.checkpoint,
        make_engine=make_engine,
        device=device,
        stream=job.stream,
    )
    outcome = run.run()
    if rank() != 0:
        return {}
    model = build_model(architecture)
    model.load_state_dict(outcome.weights)
    meta = checkpoint_meta(job, architecture, outcome)
    signed = save_checkpoint(job.checkpoint, model, meta)
    return {"fingerprint": signed.fingerprint, "selection": signed.selection}


def read_features(job: TrainJob) -> PairFeatures:
    """Read the rows that training and validation use, in the order of the parts."""
    return load_pair_features(
        (rule_table(_read(job.pairs, part), job.split) for part in job.parts),
        num_regions=int(job.info["num_regions"]),
        token_channels=int(job.info["token_channels"]),
        keep=lambda table: wanted_rows(
            table.column("labels").to_pylist(), table.column("partition").to_pylist(), job.split
        ),
    )


def wanted_rows(labels: list[list[str]], partition: list[str], split: ClassSplit) -> npt.NDArray[np.bool_]:
    """Return a mask of the rows of seen classes: all partitions of pseudo-unseen ones, train (and val) of the others."""
    seen = training_rows(labels, split, refit=True)
    held_out = frozenset(split.pseudo_unseen)
    pseudo = np.array([not held_out.isdisjoint(names) for names in labels], dtype=np.bool_)
    used = np.isin(np.array(partition, dtype="U5"), ("train", "val") if split.kind == "none" else ("train",))
    return seen & (pseudo | used)


def checkpoint_meta(job: TrainJob, architecture: dict[str, Any], outcome: Outcome) -> CheckpointMeta:
    """Return what the checkpoint says about itself; the fingerprint is added when it is saved."""
    info, model = job.info, build_model(architecture)
    teacher = info["teacher"]
    return CheckpointMeta(
        architecture=architecture,
        blocks=tuple(BlockRecord(**asdict(block)) for block in model.blocks),
        label_temperature=outcome.label_temperature,
        label_weight=outcome.label_weight,
        image_backbone=info["image_backbone"],
        text_backbone=info["text_backbone"],
        # A thousand class names belong to the backbone, not to every checkpoint.
        teacher=teacher and {name: value for name, value in teacher.items() if name != "class_names"},
        preprocessing=info["image_backbone"]["spec"],
        region_grid=info["region_grid"],
        max_tokens=info["max_tokens"],
        selection=outcome.selection,
        recipe=job.config.recipe,
        config=job.config.model_dump(mode="json"),
        split=json.loads(job.split.to_json()),
    )


def _read(store: Store, part: str) -> pa.Table:
    with store.open(part) as file:
        return pq.read_table(file, columns=list(COLUMNS))
