"""The section that says how training runs: workers, batches, precision, restarts. What is learned: config/research.py."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from zscmr_ray.config.base import Section, setting
from zscmr_ray.errors import ConfigError


class TrainSection(Section):
    """How training runs."""

    num_workers: int = setting(
        1, "speed", "Ray Train workers (ranks); results agree within 1e-4 in fp32", ge=1
    )
    min_workers: int | None = setting(
        None,
        "speed",
        "elastic: train with what the cluster has between this and num_workers, from one lost or added node to the next "
        "(counts that divide the batch; others leave workers idle); none = always num_workers",
        ge=1,
    )
    threads_per_worker: int = setting(
        2, "output", "torch threads of one worker (the last bits depend on it)", ge=1
    )
    use_gpu: bool = setting(False, "speed", "one GPU and NCCL per worker, else CPU and gloo")
    global_batch_size: int = setting(64, "output", "rows of a step over all workers: the contrast set", ge=2)
    micro_batch_size: int | None = setting(
        None,
        "speed",
        "rows a worker encodes at once, none = its whole share; fewer need less memory and a second encoding (GradCache): "
        "the contrast set stays the global batch",
        ge=1,
    )
    classes_per_batch: int | None = setting(
        None,
        "output",
        "class-balanced steps: so many classes, each with global_batch_size / classes_per_batch items; none = rows "
        "shuffled whatever their classes",
        ge=2,
    )
    feature_memory_bytes: int = setting(
        4_000_000_000,
        "speed",
        "cached features that a worker holds in memory, in bytes; more are read step by step from a file in TMPDIR, which "
        "must be a disk",
        ge=0,
    )
    prefetch_steps: int = setting(
        2, "speed", "steps whose inputs are made ahead by a thread; 0 = each when it is needed", ge=0
    )
    zero_stage: Literal[0, 1, 2, 3] = setting(0, "speed", "DeepSpeed ZeRO stage")
    offload: Literal["none", "cpu"] = setting(
        "none",
        "speed",
        "cpu = ZeRO keeps the optimiser's state (stage 3: parameters too) in the host's memory, for models that do not "
        "fit on the GPU; needs use_gpu and zero_stage 1 or more",
    )
    precision: Literal["fp32", "bf16"] = setting("fp32", "output", "arithmetic of the step")
    activation_checkpointing: bool = setting(
        False,
        "speed",
        "trained backbone blocks keep no activations: backward computes them again (less memory, one more forward pass)",
    )
    activation_cache_bytes: int = setting(
        1_000_000_000,
        "speed",
        "memory of a worker for what feeds trained backbone blocks (states of the frozen ones, else pixels), in bytes",
        ge=0,
    )
    seed: int = setting(0, "output", "seed of initialisation, order and noise", ge=0)
    refit: bool = setting(
        False, "output", "after selection, train anew on all seen classes for the selected steps"
    )
    checkpoint_every_steps: int = setting(50, "speed", "steps between resumable checkpoints", ge=1)
    log_every_steps: int = setting(10, "speed", "steps between two lines of metrics", ge=1)
    max_failures: int = setting(3, "speed", "worker-group restarts before training gives up", ge=0)
    keep_checkpoints: int = setting(2, "speed", "newest resumable checkpoints kept", ge=1)
    keep_best: bool = setting(
        True,
        "speed",
        "from the first validation on, the best validated weights are a checkpoint of their own, checkpoint/best/ "
        "(deleted with the resumable ones at the end, but kept where refit goes beyond them)",
    )

    @model_validator(mode="after")
    def _offload_from_a_gpu(self) -> TrainSection:
        if self.offload != "none" and not (self.use_gpu and self.zero_stage):
            raise ConfigError(
                "train.offload moves ZeRO's state from a GPU to the host's memory",
                got=f"train.offload={self.offload}, use_gpu={self.use_gpu}, zero_stage={self.zero_stage}",
                expected="train.use_gpu=true and train.zero_stage 1, 2 or 3",
                remedy="--set train.offload=none; on CPU the state is in the host's memory already",
            )
        return self
