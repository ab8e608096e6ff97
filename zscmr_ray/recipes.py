"""Named experiments: each a function that returns a configuration; variants change a parent (DESIGN 4).

An ablation is three to five lines here, never an `if` in a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zscmr_ray.config import Config
from zscmr_ray.errors import ConfigError


def fgan() -> Config:
    """FGAN with this project's settings, chosen on pseudo-unseen classes (docs/science.md)."""
    return Config(recipe="fgan")


def fgan_paper() -> Config:
    """FGAN with the published hyper-parameters (SCIENCE 2): batch 16, lr 1e-5, 60 epochs, n = 1000."""
    return vary(
        fgan(),
        recipe="fgan_paper",
        train={"global_batch_size": 16},
        optim={"lr": 1e-5, "weight_decay": 1e-4, "warmup_steps": 10, "max_epochs": 60, "patience_epochs": 60},
        model={
            "num_noise_samples": 1000,
            "sigma": 0.05,
            "ratio": 0.1,
            "rounding": "floor",
            "eval_selection": "hard",
        },
        loss={"negatives": "hardest"},
    )


def fgan_mean() -> Config:
    """FGAN with mean pooling in the place of the perturbed top-k."""
    return vary(fgan(), recipe="fgan_mean", model={"selection": "mean"})


def fgan_as_released(defect: int) -> Config:
    """The published settings with one defect of the released code switched back on (SCIENCE 2, 1 to 12)."""
    return vary(fgan_paper(), recipe=f"fgan_as_released:{defect}", model={"defect": defect})


RECIPES: dict[str, Callable[[], Config]] = {"fgan": fgan, "fgan_paper": fgan_paper, "fgan_mean": fgan_mean}


def recipe_config(name: str) -> Config:
    """The configuration of a recipe by name; `fgan_as_released:<defect>` takes its number. Raises ConfigError."""
    base, _, argument = name.partition(":")
    if base == "fgan_as_released" and argument.isdigit() and 1 <= int(argument) <= 12:
        return fgan_as_released(int(argument))
    if name not in RECIPES:
        raise ConfigError(
            "unknown recipe", got=name, expected=", ".join([*RECIPES, "fgan_as_released:<1 to 12>"])
        )
    return RECIPES[name]()


def vary(parent: Config, *, recipe: str, **sections: dict[str, Any]) -> Config:
    """A copy of a configuration with some fields of some sections changed; the result is validated."""
    values = parent.model_dump()
    values["recipe"] = recipe
    for section, changes in sections.items():
        values[section].update(changes)
    return Config.model_validate(values)
