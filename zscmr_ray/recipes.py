"""Named experiments: each a function that returns a configuration; variants change a parent (DESIGN 4).

An ablation is three to five lines here, never an `if` in a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

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


def fgan_regions_only() -> Config:
    """FGAN without FGLA: region embeddings alone."""
    return vary(fgan(), recipe="fgan_regions_only", loss={"fgla_weight": 0.0})


def fgan_labels_only() -> Config:
    """FGAN without FGCL: label distributions alone."""
    return vary(fgan(), recipe="fgan_labels_only", loss={"fgcl_weight": 0.0})


def fgan_no_weak() -> Config:
    """FGAN without FGCL's same-class term."""
    return vary(fgan(), recipe="fgan_no_weak", loss={"weak_weight": 0.0})


def fgan_no_vae() -> Config:
    """FGAN with logits from a plain encoder: neither reconstruction nor KL."""
    return vary(fgan(), recipe="fgan_no_vae", loss={"reconstruction_weight": 0.0, "kl_weight": 0.0})


def fgan_no_prior() -> Config:
    """FGAN without the teacher's prior: the label distributions agree with each other only."""
    return vary(fgan(), recipe="fgan_no_prior", loss={"prior_weight": 0.0})


def fgan_no_cross() -> Config:
    """FGAN without the KLs between the modalities: each follows the teacher only."""
    return vary(fgan(), recipe="fgan_no_cross", loss={"cross_weight": 0.0})


def fgan_hardest() -> Config:
    """FGAN with the published hardest negative, which collapses the region head (docs/science.md)."""
    return vary(fgan(), recipe="fgan_hardest", loss={"negatives": "hardest"})


def fgan_ratio(ratio: float) -> Config:
    """FGAN that keeps another share of the tokens."""
    return vary(fgan(), recipe=f"fgan_ratio:{ratio:g}", model={"ratio": ratio})


def fgan_margin(margin: float) -> Config:
    """FGAN with another margin m1 between pair and negative."""
    return vary(fgan(), recipe=f"fgan_margin:{margin:g}", loss={"negative_margin": margin})


def fgan_weak_margin(margin: float) -> Config:
    """FGAN with another margin m2 between pair and same-class non-pair."""
    return vary(fgan(), recipe=f"fgan_weak_margin:{margin:g}", loss={"weak_margin": margin})


def imfa() -> Config:
    """IMFA = ZS_INN_FUSE, a reconstruction (SCIENCE 3): attention over regions fused from image and text.

    The contrast is ours, chosen on pseudo-unseen classes for all three of its methods alike (`imfa_hinge` is the other).
    """
    return vary(
        fgan(),
        recipe="imfa",
        model={"method": "inn", "attention": "fused", "text_trunk": "linear"},
        loss={"contrast": "infonce", "same_class": "positive", "temperature": 0.4},
    )


def imfa_hinge() -> Config:
    """IMFA with the bidirectional hinge of the hardest negative, margin .2."""
    return vary(
        imfa(),
        recipe="imfa_hinge",
        loss={"contrast": "hinge", "negatives": "hardest", "same_class": "negative", "hinge_margin": 0.2},
    )


def zs_inn_self() -> Config:
    """ZS_INN_SELF: IMFA with attention from the image alone."""
    return vary(imfa(), recipe="zs_inn_self", model={"attention": "self"})


def zs_inn() -> Config:
    """ZS_INN: IMFA with the mean of the regions."""
    return vary(imfa(), recipe="zs_inn", model={"attention": "mean"})


def infonce() -> Config:
    """Two towers over pooled features with InfoNCE, a baseline."""
    return vary(
        fgan(),
        recipe="infonce",
        model={"method": "tower"},
        loss={"contrast": "infonce", "same_class": "negative", "temperature": 0.1},
    )


def supcon() -> Config:
    """Two towers with same-class positives (SupCon) at the high temperature that unseen classes ask for (SCIENCE 9)."""
    return vary(infonce(), recipe="supcon", loss={"same_class": "positive", "temperature": 0.4})


def best() -> Config:
    """This project's own method for unseen classes: four alignments in one vector (models/best.py)."""
    return vary(fgan(), recipe="best", model={"method": "best"})


RECIPES: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe
    for recipe in (
        fgan,
        fgan_paper,
        fgan_mean,
        fgan_regions_only,
        fgan_labels_only,
        fgan_no_weak,
        fgan_no_vae,
        fgan_no_prior,
        fgan_no_cross,
        fgan_hardest,
        imfa,
        imfa_hinge,
        zs_inn_self,
        zs_inn,
        infonce,
        supcon,
        best,
    )
}
WITH_NUMBER: dict[str, Callable[[float], Config]] = {
    recipe.__name__: recipe for recipe in (fgan_ratio, fgan_margin, fgan_weak_margin)
}


def recipe_config(name: str) -> Config:
    """The configuration of a recipe by name; `fgan_as_released:3`, `fgan_ratio:0.3` take a number. Raises ConfigError."""
    base, _, argument = name.partition(":")
    if base == "fgan_as_released" and argument.isdigit() and 1 <= int(argument) <= 12:
        return fgan_as_released(int(argument))
    if base in WITH_NUMBER and (number := _number(argument)) is not None:
        try:
            return WITH_NUMBER[base](number)
        except ValidationError as error:
            raise ConfigError(
                f"recipe {base} does not take this number", got=name, expected=error.errors()[0]["msg"]
            ) from error
    if name not in RECIPES:
        numbered = [f"{recipe}:<number>" for recipe in WITH_NUMBER]
        raise ConfigError(
            "unknown recipe",
            got=name,
            expected=", ".join([*RECIPES, "fgan_as_released:<1 to 12>", *numbered]),
        )
    return RECIPES[name]()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def vary(parent: Config, *, recipe: str, **sections: dict[str, Any]) -> Config:
    """A copy of a configuration with some fields of some sections changed; the result is validated."""
    values = parent.model_dump()
    values["recipe"] = recipe
    for section, changes in sections.items():
        values[section].update(changes)
    return Config.model_validate(values)
