"""What an engine is: something that does one training update and can be saved and gone on with.

Two engines agree with each other: DeepSpeed (engine/deepspeed.py) and the bare torch loop (engine/bare.py), which is
the oracle of the tests and the baseline of benchmarks/train_overhead.py. The optimiser is the same object in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zscmr_ray.config import Config, OptimSection
from zscmr_ray.engine.collectives import gather_values
from zscmr_ray.engine.schedule import learning_rate
from zscmr_ray.engine.step import StepInputs
from zscmr_ray.errors import TrainingError
from zscmr_ray.models.base import AlignmentModel
from zscmr_ray.models.build import ENCODERS, own_settings


class Engine(Protocol):
    """One run's weights and optimiser state."""

    def update(self, inputs: StepInputs) -> dict[str, float]:
        """Do one step: forward, backward, clip, update. Returns the loss parts; TrainingError if they are not finite."""

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the alignment model's whole state on the CPU. Every rank must call it; raises as check_weights."""

    def save(self, folder: Path) -> None:
        """Write what `load` needs into a local folder. Every rank must call it, each with a folder of its own.

        Raises as `weights`: a state to go on from must not hold what cannot be gone on with.
        """

    def load(self, folder: Path, *, num_workers: int) -> None:
        """Go on from a folder that holds what so many ranks saved, as many as now or not. Every rank must call it."""


def make_optimizer(model: AlignmentModel, optim: OptimSection) -> torch.optim.AdamW:
    """Return AdamW (decoupled weight decay), fused: one kernel for all parameters of a group, on CPU too.

    The first group is the alignment network, the second, where there are any, trained blocks of backbones.
    """
    encoders = model.encoder_parameters()
    in_encoders = {id(parameter) for parameter in encoders}
    groups = [[one for one in model.parameters() if id(one) not in in_encoders], encoders]
    return torch.optim.AdamW(
        [{"params": group} for group in groups if group],
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def set_learning_rate(optimizer: Any, *, step: int, optim: OptimSection, total_steps: int) -> float:
    """Set the rate of the network's and of the encoders' parameter group for a step; returns the network's."""
    rates = [
        learning_rate(step, peak=peak, warmup_steps=optim.warmup_steps, total_steps=total_steps)
        for peak in (optim.lr, optim.encoder_lr)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        group["lr"] = rate
    return rates[0]


def check_weights(parameters: Iterable[nn.Parameter]) -> None:
    """Raise TrainingError, on every rank alike, when a weight is NaN or infinite.

    A finite loss may have gradients that are not. Under ZeRO 3 a rank looks at its own part. Every rank must call it.
    """
    parts = [getattr(parameter, "ds_tensor", parameter) for parameter in parameters]
    if all(gather_values(all(bool(torch.isfinite(part).all()) for part in parts))):
        return
    raise TrainingError(
        "the weights are no longer finite, although the loss was",
        got="a NaN or infinite weight after an update",
        expected="finite gradients in every step",
        remedy="these weights were not saved; train anew (--overwrite, or another --run) with a lower optim.lr",
    )


def as_floats(parts: dict[str, Tensor]) -> dict[str, float]:
    """Return scalars as numbers, with one synchronisation for all of them."""
    values = torch.stack([value.detach().float() for value in parts.values()]).tolist()
    return dict(zip(parts, values, strict=True))


def model_architecture(
    config: Config,
    *,
    image_channels: int,
    text_channels: int,
    num_classes: int,
    encoders: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what `models.build.build_model` builds from: the settings that the method reads, and the features' widths.

    `encoders` are the backbones trained with it, as `engine.feeding.trained_encoders` describes them.
    """
    settings = own_settings(
        {
            **config.model.model_dump(),
            **config.loss.model_dump(),
            "image_channels": image_channels,
            "text_channels": text_channels,
            "num_classes": num_classes,
        }
    )
    return settings | ({ENCODERS: dict(encoders)} if encoders else {})
