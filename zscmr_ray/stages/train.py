"""The train stage: class split, Ray Train workers under DeepSpeed, a self-describing checkpoint, the manifest last.

The same command after a kill goes on from the newest resumable state (engine/resume.py). What it is not: the training
itself (engine/run.py) or what a worker does (stages/train_loop.py).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from zscmr_ray.claim import Claim, open_stage
from zscmr_ray.config import Config
from zscmr_ray.data.class_order import ClassBalancedOrder, make_order
from zscmr_ray.data.no_leak import RULE_COLUMNS, dominant_labels
from zscmr_ray.data.splits import ClassSplit, training_rows
from zscmr_ray.engine.class_split import configured_split
from zscmr_ray.errors import ConfigError, DataError, TrainingError, ZscmrError
from zscmr_ray.manifest import Manifest, StageKey, part_record
from zscmr_ray.models.versions import version_facts
from zscmr_ray.stages import StageResult, require_images, require_pairs, stage_store
from zscmr_ray.storage import Store

STAGE = "train"
SECTIONS = ("split", "model", "loss", "optim", "train")
# Read by Ray Train's controller and workers. Polling every 2 s (the default) costs as much at every end and restart;
# the print patch writes every line twice.
RAY_TRAIN_ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
# An elastic group asks for workers of a lost node until Ray has noticed the loss; at the default it waits 60 s for them.
ELASTIC_ENVIRONMENT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}


def run_train(config: Config, *, overwrite: bool = False) -> StageResult:
    """Train the alignment network on the seen classes of the pairs, going on where a killed run stopped.

    Needs a running Ray unless everything is there already. Raises DataError for classes that cannot be split,
    ConfigError for a batch that cannot be divided, TrainingError for a loss that is not finite (step and row ids).
    """
    pairs = stage_store(config, "preprocess")
    manifest = require_pairs(pairs)
    require_images(manifest, ["image"] if config.model.image_blocks else [])
    parts = tuple(part.name for part in manifest.parts if part.name.startswith("part-"))
    split, counts = plan_training(config, pairs, parts)
    key = StageKey(
        stage=STAGE,
        config=config.stage_config(*SECTIONS) | version_facts(config.model.method),
        input_fingerprint=manifest.fingerprint,
    )
    store = stage_store(config, STAGE)
    with open_stage(store, key, overwrite=overwrite) as claim:
        done = claim.complete
        if done is not None:
            _delete_what_training_needed(store, done)
            return StageResult(STAGE, store.uri, skipped=True, counts=done.counts, info=done.info)
        keep_split(pairs, split)
        print(f"train: {', '.join(f'{value} {name}' for name, value in counts.items())}", file=sys.stderr)
        # Here and not above: Ray and torch cost seconds, and a finished stage returns without them.
        from zscmr_ray.stages.train_loop import TrainJob

        found = fit(TrainJob(config, split, pairs, parts, manifest.info, store))
        done = finish(claim, found, counts)
    return StageResult(STAGE, store.uri, skipped=False, counts=done.counts, info=done.info)


def keep_split(pairs: Store, split: ClassSplit) -> str:
    """Write the split below the pairs' `splits/` and return its key; another split of that name keeps its file."""
    data, name = split.to_json().encode(), split.file_name.removesuffix(".json")
    key = f"splits/{name}.json"
    if pairs.exists(key) and pairs.read_bytes(key) != data:
        key = f"splits/{name}-{hashlib.sha256(data).hexdigest()[:8]}.json"
    pairs.write_bytes(key, data)
    return key


def plan_training(config: Config, pairs: Store, parts: tuple[str, ...]) -> tuple[ClassSplit, dict[str, int]]:
    """Split the classes and count the rows of each use, refusing here what no worker could train."""
    from zscmr_ray.engine.batching import rows_per_rank
    from zscmr_ray.engine.elastic import check_range

    train = config.train
    batch, micro = train.global_batch_size, train.micro_batch_size
    if train.min_workers is None:
        rows_per_rank(batch, train.num_workers, micro_batch_size=micro)
    else:
        check_range(train.min_workers, train.num_workers, global_batch_size=batch, micro_batch_size=micro)
    labels, partition = _read_labels(pairs, parts)
    split = configured_split(labels, config.split)
    if split.rule == "dominant":
        labels = _ruled_labels(pairs, parts, split)
    trained = np.flatnonzero(training_rows(labels, split, refit=False) & (partition == "train"))
    num_rows = len(trained)
    if num_rows == 0:
        raise DataError(
            "no row is left to train on",
            got=f"{len(labels)} pairs, of which {int((partition == 'train').sum())} in partition train",
            expected="rows of partition train, all of whose classes are seen",
            remedy="check data.columns.partition and split.kind",
        )
    if train.num_workers > num_rows:
        raise ConfigError(
            "more training workers than rows to train on",
            got=f"train.num_workers={train.num_workers}, {num_rows} rows",
            expected="at least one row a worker in every step",
            remedy=f"--set train.num_workers=1 and --set train.global_batch_size={max(2, num_rows)}, or give more data",
        )
    _check_order(config, [labels[row] for row in trained.tolist()])
    classes = {f"{name}_classes": count for name, count in split.summary().items()}
    return split, {"trained_rows": num_rows, "pairs": len(labels)} | classes


def _check_order(config: Config, labels: Sequence[Sequence[str]]) -> None:
    """Refuse batches that cannot be filled, and say which rows class-balanced ones leave out."""
    train = config.train
    order = make_order(
        labels,
        global_batch_size=train.global_batch_size,
        classes_per_batch=train.classes_per_batch,
        seed=train.seed,
    )
    if isinstance(order, ClassBalancedOrder) and order.left_out:
        print(
            f"train: {order.left_out} of {len(labels)} rows are of classes with fewer than {order.items_per_class} "
            "rows and never in a class-balanced batch",
            file=sys.stderr,
        )


def fit(job: Any) -> dict[str, Any]:
    """Run the workers to their end; returns rank 0's report. Raises what the workers raised, unwrapped."""
    train = job.config.train
    elastic = ELASTIC_ENVIRONMENT if train.min_workers is not None else {}
    for name, value in (RAY_TRAIN_ENVIRONMENT | elastic).items():
        os.environ.setdefault(name, value)
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from zscmr_ray.engine.collectives import choose_backend
    from zscmr_ray.stages.interruptible import ConnectionWatch, interruptible
    from zscmr_ray.stages.remote_lines import printed_lines
    from zscmr_ray.stages.train_loop import train_loop

    check_cluster(job.config, ray.cluster_resources())
    # Ray Train's own bookkeeping only: states and results go to the run's store.
    folder = tempfile.mkdtemp(prefix="zscmr-train-")
    settings = {
        "torch_config": TorchConfig(backend=choose_backend(use_gpu=train.use_gpu)),
        "scaling_config": ray.train.ScalingConfig(
            num_workers=train.num_workers
            if train.min_workers is None
            else (train.min_workers, train.num_workers),
            use_gpu=train.use_gpu,
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if train.use_gpu else {}),
        ),
        "run_config": ray.train.RunConfig(
            storage_path=folder,
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
        ),
    }
    try:
        with printed_lines() as stream:
            loop_config = {"job": replace(job, stream=stream)}
            trainer = TorchTrainer(train_loop, train_loop_config=loop_config, **settings)
            # A client (ray://) sees a proxy and not the head; it is told of a lost proxy by Ray.
            is_client = ray.util.client.ray.is_connected()
            watch = None if is_client else ConnectionWatch(ray.get_runtime_context().gcs_address)
            returned = interruptible(trainer.fit, watch=watch).return_value
    except ray.train.TrainingFailedError as error:
        raise cause_of(error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if "error" in returned:
        raise returned["error"]
    return dict(returned)


def check_cluster(config: Config, resources: dict[str, float]) -> None:
    """Refuse more workers than the cluster can hold: Ray Train would wait for them without end."""
    name = "GPU" if config.train.use_gpu else "CPU"
    needed = config.train.min_workers or config.train.num_workers
    if resources.get(name, 0) >= needed:
        return
    if not config.ray.autoscales:
        raise ConfigError(
            f"more training workers than {name}s",
            got=f"{needed} workers, {resources.get(name, 0):g} {name}s in the cluster",
            expected=f"at most one worker per {name}",
            remedy="lower train.num_workers (or train.min_workers), join a larger cluster with --address, or say "
            "ray.autoscales=true of one that adds nodes by itself",
        )
    waiting = f"{needed} workers wait for {name}s ({resources.get(name, 0):g} now)"
    print(f"{STAGE}: {waiting}: the cluster adds nodes", file=sys.stderr)


def cause_of(error: Exception) -> ZscmrError:
    """Return the workers' own error where it is one of ours, else a TrainingError that names the first."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        inner = getattr(failure, "cause", failure)
        if isinstance(inner, ZscmrError):
            return inner
    first = next(iter(failures.values()), error)
    return TrainingError(
        "the training workers failed",
        got=f"{type(first).__name__}: {first}",
        expected="workers that live to the end",
        remedy="run the same command again (it goes on from the last resumable state), or raise train.max_failures",
    )


def finish(claim: Claim, found: dict[str, Any], counts: dict[str, int]) -> Manifest:
    """Write the manifest of what the workers left, and delete what only a training in progress needs."""
    from zscmr_ray.engine.checkpoint import FILES

    store, key = claim.store, claim.key
    selection = {name: value for name, value in found["selection"].items() if name != "table"}
    manifest = Manifest(
        key=key,
        config_hash=key.config_hash,
        counts=counts | {"steps": int(selection["steps"])},
        parts=[part_record(store, name) for name in sorted(FILES)],
        info={"fingerprint": found["fingerprint"], "selection": selection},
    )
    claim.finish(manifest)
    _delete_what_training_needed(store, manifest)
    return manifest


def _delete_what_training_needed(store: Store, manifest: Manifest) -> None:
    """Delete what a finished training no longer needs (also after a kill between manifest and deletion)."""
    store.delete_tree("engine")
    # A refit's weights are others than those that were validated.
    if not manifest.info["selection"].get("refit"):
        store.delete_tree("best")


def _ruled_labels(pairs: Store, parts: tuple[str, ...], split: ClassSplit) -> list[tuple[str, ...]]:
    """The labels that count under the split; what is discarded is said by reason."""
    columns: dict[str, list[Any]] = {name: [] for name in RULE_COLUMNS}
    for part in parts:
        with pairs.open(part) as file:
            table = pq.read_table(file, columns=list(RULE_COLUMNS))
        for name, values in columns.items():
            values += table.column(name).to_pylist()
    ruled = dominant_labels(columns["labels"], columns["captions"], columns["partition"], split)
    for reason, count in ruled.discarded.items():
        print(f"train: {count} of {len(ruled.labels)} pairs take part in nothing: {reason}", file=sys.stderr)
    return ruled.labels


def _read_labels(
    pairs: Store, parts: tuple[str, ...]
) -> tuple[Sequence[Sequence[str]], npt.NDArray[np.str_]]:
    labels: list[list[str]] = []
    partition: list[str] = []
    for part in parts:
        with pairs.open(part) as file:
            table = pq.read_table(file, columns=["labels", "partition"])
        labels += table.column("labels").to_pylist()
        partition += table.column("partition").to_pylist()
    if not labels:
        raise DataError(
            "there are no pairs to train on", got=pairs.uri, remedy="run `zscmr preprocess` first"
        )
    return labels, np.array(partition, dtype="U5")
