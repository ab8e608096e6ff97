"""From a checkpoint's `architecture` back to a model: the one table of methods. Not the backbones (backbones/)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.base import AlignmentModel, build_seeded, read_settings
from zscmr_ray.models.best import Best
from zscmr_ray.models.best_settings import BestSettings
from zscmr_ray.models.fgan import Fgan, FganSettings
from zscmr_ray.models.imfa import Inn, InnSettings
from zscmr_ray.models.tower import TowerSettings, TwoTowers
from zscmr_ray.models.versions import VERSION, check_version, version_facts

METHODS: dict[str, tuple[type[Any], type[Any]]] = {
    "best": (BestSettings, Best),
    "fgan": (FganSettings, Fgan),
    "inn": (InnSettings, Inn),
    "tower": (TowerSettings, TwoTowers),
}
ENCODERS = "encoders"
_CHANNELS = ("image_channels", "text_channels")


def build_model(architecture: Mapping[str, Any], *, seed: int = 0) -> AlignmentModel:
    """Build the model that `architecture()` describes, initial weights by `seed`; trained encoders are loaded.

    Raises ConfigError if unknown, and what `build_network` and `models.tuned.TunedModel` raise.
    """
    network = build_network(architecture, seed=seed)
    encoders = architecture.get(ENCODERS)
    if not encoders:
        return network
    # Here and not above: backbones cost a process what it may not need.
    from zscmr_ray.models.tuned import TunedModel

    return TunedModel(network, encoders)


def build_network(architecture: Mapping[str, Any], *, seed: int = 0) -> AlignmentModel:
    """Build the alignment network alone, without the encoders that may be trained with it.

    Raises RefusedError for a method's other version.
    """
    settings_type, model_type = _method(architecture)
    check_version(architecture)
    architecture = {name: value for name, value in architecture.items() if name not in (ENCODERS, VERSION)}
    settings = read_settings(settings_type, architecture, needed=_CHANNELS)
    model: AlignmentModel = build_seeded(lambda: model_type(settings), seed=seed)
    return model


def is_fitted(architecture: Mapping[str, Any]) -> bool:
    """Return whether the described model is fitted at once and not trained step by step."""
    _, model_type = _method(architecture)
    return bool(model_type.is_fitted)


def scores_pairs(architecture: Mapping[str, Any]) -> bool:
    """Return whether the described model has a score for pairs that no two vectors give: IMFA's fused attention."""
    return architecture.get("method") == "inn" and architecture.get("attention") == "fused"


def own_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return of many settings those that the method named in them knows, with "method" and its version: its architecture."""
    settings_type, _ = _method(values)
    known = {field.name for field in fields(settings_type)}
    own = {name: value for name, value in values.items() if name in known}
    return {"method": values["method"]} | version_facts(values["method"]) | own


def _method(values: Mapping[str, Any]) -> tuple[type[Any], type[Any]]:
    found = METHODS.get(str(values.get("method")))
    if found is None:
        raise ConfigError("unknown alignment method", got=values.get("method"), expected=", ".join(METHODS))
    return found
