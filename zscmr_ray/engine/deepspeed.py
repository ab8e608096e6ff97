"""The DeepSpeed engine: the only file that imports deepspeed, and only when an engine is made.

ZeRO 0 to 3, torch's AdamW (DeepSpeed's own optimisers compile for a minute), no compiled operators on CPU.
What it is not: precision (autocast in engine/step.py) or the schedule (engine/schedule.py).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

from zscmr_ray.config import Config, TrainSection
from zscmr_ray.engine.base import as_floats, check_weights, make_optimizer, set_learning_rate
from zscmr_ray.engine.batching import rows_per_rank
from zscmr_ray.engine.collectives import choose_backend, world_size
from zscmr_ray.engine.step import AlignmentStep, StepInputs, check_finite
from zscmr_ray.errors import DataError, MissingPackageError

_TAG, _UNIVERSAL = "state", "universal"


def engine_config(config: Config, num_workers: int) -> dict[str, Any]:
    """Return DeepSpeed's own configuration; the batch is divided by `rows_per_rank`, with its refusals."""
    train = config.train
    share = rows_per_rank(train.global_batch_size, num_workers, micro_batch_size=train.micro_batch_size)
    return {
        "train_batch_size": train.global_batch_size,
        # A step is one micro batch to DeepSpeed: ours, of fewer rows, are within it (engine/step.py).
        "train_micro_batch_size_per_gpu": share,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.clip_norm,
        "zero_optimization": {"stage": train.zero_stage} | _offloaded(train),
        "zero_allow_untested_optimizer": True,
        # torch's AdamW on the CPU too: DeepSpeed's own is compiled at its first use.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def _offloaded(train: TrainSection) -> dict[str, Any]:
    """What ZeRO keeps in the memory of the host: the optimiser's state, at stage 3 parameters too."""
    if train.offload == "none":
        return {}
    names = ("offload_optimizer", "offload_param") if train.zero_stage == 3 else ("offload_optimizer",)
    return {name: {"device": "cpu", "pin_memory": True} for name in names}


class DeepSpeedEngine:
    """Trains `AlignmentStep` under DeepSpeed; sets up a process group of one where there is none."""

    def __init__(self, step: AlignmentStep, *, config: Config, total_steps: int, device: str = "cpu") -> None:
        deepspeed = _import_deepspeed(device)
        if not dist.is_initialized():
            backend = choose_backend(use_gpu=device != "cpu")
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        self.optim, self.total_steps = config.optim, total_steps
        self.zero_stage = config.train.zero_stage
        self.step_module = step.to(device).train()
        _lay_by_rows(self.step_module)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self.step_module,
            optimizer=make_optimizer(step.model, config.optim),
            config=engine_config(config, world_size()),
            dist_init_required=False,
        )
        # One worker without partitioned state has nobody to add to: the copies into and out of the bucket cost 9 ms.
        self._engine.enable_backward_allreduce = world_size() > 1 or self.zero_stage > 0
        self._gathered = deepspeed.zero.GatheredParameters

    def update(self, inputs: StepInputs) -> dict[str, float]:
        """Do one step; see `Engine`."""
        set_learning_rate(self._optimizer, step=inputs.step, optim=self.optim, total_steps=self.total_steps)
        parts = self._engine(inputs)
        values = as_floats(parts)
        check_finite(values["total"], inputs)
        # The one place where DeepSpeed's mean over ranks becomes the sum that a global loss needs (DESIGN 3).
        self._engine.backward(parts["total"] * world_size())
        self._engine.step()
        return values

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the model's state on the CPU, gathered from all ranks under ZeRO 3."""
        model = self.step_module.model
        check_weights(model.parameters())
        whole = self._gathered(list(model.parameters())) if self.zero_stage == 3 else contextlib.nullcontext()
        with whole:
            return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def save(self, folder: Path) -> None:
        """Write DeepSpeed's checkpoint (a torch pickle: read only by `load`, after its checksums held)."""
        check_weights(self.step_module.parameters())
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)

    def load(self, folder: Path, *, num_workers: int) -> None:
        """Go on from DeepSpeed's checkpoint of so many ranks; of another number than now by way of its universal form."""
        is_divided_otherwise = self.zero_stage > 0 and num_workers != world_size()
        # A universal checkpoint gives every parameter group the settings of the first (stage 3): ours stay.
        settings = [dict(group, params=None) for group in self._optimizer.param_groups]
        if is_divided_otherwise:
            _make_universal(folder)
        self._engine._config.load_universal_checkpoint = is_divided_otherwise
        path, _ = self._engine.load_checkpoint(str(folder), tag=_UNIVERSAL if is_divided_otherwise else _TAG)
        if path is None:
            raise DataError("DeepSpeed found no state to go on from", got=sorted(map(str, folder.rglob("*"))))
        for group, own in zip(self._optimizer.param_groups, settings, strict=True):
            group.update(own, params=group["params"])
        if self.zero_stage == 3:
            self._divide_again()

    def _divide_again(self) -> None:
        """Leave no parameter whole after a load, as in a new engine.

        In its first steps DeepSpeed notes which modules read another's parameters, of those that are not whole on the
        rank. After a load it has gathered the small ones: it misses them, and fails in the step after `weights`.
        """
        parameters = list(self.step_module.parameters())
        parameters[0].partition(parameters)  # type: ignore[attr-defined]


def _lay_by_rows(module: nn.Module) -> None:
    """Store every parameter row after row: DeepSpeed sends its bytes, and kernels of convolutions may lie by channels."""
    for parameter in module.parameters():
        # The strides of axes of one entry are free: a 1 x 1 kernel by channels counts as contiguous.
        if parameter.dim() > 0 and (parameter.stride(-1) != 1 or not parameter.is_contiguous()):
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def _make_universal(folder: Path) -> None:
    """Write DeepSpeed's universal form, one file a parameter whatever the ranks were, beside its checkpoint."""
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=str(folder / _TAG),
        output_folder=str(folder / _UNIVERSAL),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    # It tells every step on both streams.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)


def _import_deepspeed(device: str) -> Any:
    # Read once, at DeepSpeed's first import: without it DeepSpeed probes for accelerators.
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if device == "cpu" else "cuda")
    # Asserted by DeepSpeed; Ray Train has set it on a worker, a process of its own has rank 0.
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        import deepspeed
    except ImportError as error:
        raise MissingPackageError(
            "training needs DeepSpeed", got=str(error), remedy="pip install deepspeed==0.19.8"
        ) from error
    # The shared-memory collective is compiled at first use (33 s with g++); gloo does the same work without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
