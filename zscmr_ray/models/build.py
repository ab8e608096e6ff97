"""From a checkpoint's `architecture` back to a model: the one table of methods. Not the backbones (backbones/)."""

from __future__ import annotations

from typing import Any

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.base import AlignmentModel
from zscmr_ray.models.fgan import build_fgan, fgan_settings


def build_model(architecture: dict[str, Any], *, seed: int = 0) -> AlignmentModel:
    """Build the model that `architecture()` describes, initial weights by `seed`. Raises ConfigError if unknown."""
    match architecture.get("method"):
        case "fgan":
            return build_fgan(fgan_settings(architecture), seed=seed)
        case other:
            raise ConfigError("unknown alignment method", got=other, expected="fgan")
