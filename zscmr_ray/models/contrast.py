"""The contrast that the single-block methods train with, by configuration: the hinge, or InfoNCE and its temperature.

A module because a learned temperature is a parameter. Not the losses themselves: losses/contrast.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from zscmr_ray.errors import ConfigError
from zscmr_ray.losses.contrast import SameClass, hinge, info_nce
from zscmr_ray.losses.fgcl import Negatives
from zscmr_ray.losses.relations import Relations

ContrastKind = Literal["hinge", "infonce"]
# A learned temperature stays above this (CLIP, Radford et al. 2021): logits of unit vectors up to 100.
_LOWEST_TEMPERATURE = 0.01


@dataclass(frozen=True, slots=True)
class ContrastSettings:
    """Which contrast; margin and negatives are the hinge's, the temperature is InfoNCE's."""

    kind: ContrastKind
    negatives: Negatives
    same_class: SameClass
    margin: float
    temperature: float
    learned_temperature: bool


class Contrast(nn.Module):
    """The loss of a similarity matrix of unit vectors. Raises ConfigError for a hinge with same-class positives."""

    def __init__(self, settings: ContrastSettings) -> None:
        super().__init__()
        if settings.kind == "hinge" and settings.same_class == "positive":
            raise ConfigError(
                "the hinge compares each pair with its negatives; it has no same-class positives",
                got="loss.contrast=hinge, loss.same_class=positive",
                expected="loss.same_class negative or ignored, or loss.contrast=infonce",
                remedy="--set loss.same_class=ignored",
            )
        self.settings = settings
        learned = settings.kind == "infonce" and settings.learned_temperature
        # One entry and not none: DeepSpeed does not broadcast a scalar.
        self.log_scale = nn.Parameter(torch.tensor([-math.log(settings.temperature)])) if learned else None

    def forward(self, similarity_BB: Tensor, relations: Relations) -> tuple[Tensor, Tensor]:
        """Return the loss and the temperature (1 for the hinge), scalars."""
        settings = self.settings
        if settings.kind == "hinge":
            loss = hinge(
                similarity_BB,
                relations,
                margin=settings.margin,
                negatives=settings.negatives,
                same_class=settings.same_class,
            )
            return loss, torch.ones_like(loss).detach()
        scale = similarity_BB.new_tensor(1.0 / settings.temperature)
        if self.log_scale is not None:
            scale = self.log_scale[0].to(similarity_BB.dtype).exp().clamp_max(1.0 / _LOWEST_TEMPERATURE)
        return info_nce(
            similarity_BB * scale, relations, same_class=settings.same_class
        ), 1.0 / scale.detach()
