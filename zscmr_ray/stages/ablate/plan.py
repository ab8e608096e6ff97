"""Which trials an ablation holds: corpora x class splits x recipes x seeds, and the presets.

A trial is named by what decides its numbers: the pairs' fingerprint, every setting that affects output, and the method's
version (models/versions.py). So a plan may grow (a recipe, a split more) and what is finished stays; a changed recipe or
method is another trial. No torch, no Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from zscmr_ray.config import Config
from zscmr_ray.data.splits import SplitKind
from zscmr_ray.errors import ConfigError
from zscmr_ray.manifest import hash_json
from zscmr_ray.models.versions import version_facts
from zscmr_ray.recipes import vary
from zscmr_ray.stages import require_pairs
from zscmr_ray.storage import Store

TRAINING_FREE = "training_free"
"""The trial without a training: CCA, ridge and ConSE of a corpus and split, whose rows stand beside every recipe's."""

SECTIONS = ("split", "model", "loss", "optim", "train", "evaluate")
FREE_SECTIONS = ("split", "evaluate")
DEFAULT_SETTINGS = ("train.refit=true", "train.threads_per_worker=1")


@dataclass(frozen=True)
class Preset:
    """A named choice of recipes, splits and settings; `--set` wins over its settings."""

    recipes: tuple[str, ...]
    splits: tuple[str, ...]
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    reference: str = "best"


_CORE = (
    "best",
    "fgan",
    "fgan_mean",
    "fgan_regions_only",
    "fgan_labels_only",
    "imfa",
    "zs_inn_self",
    "zs_inn",
    "infonce",
    "supcon",
)
_FULL = (
    *_CORE,
    "fgan_paper",
    "fgan_hardest",
    "fgan_no_weak",
    "fgan_no_vae",
    "fgan_no_prior",
    "fgan_no_cross",
    *(f"fgan_ratio:{ratio}" for ratio in (0.05, 0.2, 0.5)),
    *(f"fgan_margin:{margin}" for margin in (0.2, 0.4, 1.0)),
    *(f"fgan_weak_margin:{margin}" for margin in (0.1, 0.6)),
    "imfa_hinge",
    # 6 changes what memory is used, 7, 8 and 12 what is saved or allowed: no number of a trial.
    *(f"fgan_as_released:{defect}" for defect in (1, 2, 3, 4, 5, 9, 10, 11)),
)
PRESETS: dict[str, Preset] = {
    "core": Preset(_CORE, ("even_odd", "random:1", "random:2"), ("model.region_grid=4",)),
    "full": Preset(_FULL, ("even_odd", *(f"random:{seed}" for seed in (1, 2, 3, 4)))),
}


@dataclass(frozen=True)
class Trial:
    """One row of work: a configuration on a corpus. `key` says what decides its numbers."""

    corpus: str
    recipe: str
    split: str
    seed: int
    config: Config
    key: dict[str, Any]

    @property
    def name(self) -> str:
        """Its record's path below `trials/`, without the extension: readable, and unique by the key's hash."""
        recipe = self.recipe.replace(":", "_")
        split = self.split.replace(":", "_")
        return f"{self.corpus}/{split}/{recipe}-{self.seed}-{hash_json(self.key)[:12]}"

    @property
    def is_training_free(self) -> bool:
        """Whether nothing is trained."""
        return self.recipe == TRAINING_FREE


@dataclass(frozen=True)
class AblationPlan:
    """The trials of one command, in the order in which they run, and what its table is about."""

    run_uri: str
    corpora: Mapping[str, str]
    recipes: tuple[str, ...]
    splits: tuple[str, ...]
    seeds: tuple[int, ...]
    reference: str
    trials: tuple[Trial, ...]

    @property
    def store(self) -> Store:
        """The ablation's own directory."""
        return Store(self.run_uri)

    def describe(self) -> dict[str, Any]:
        """Return plain values for the table; places are left out."""
        return {
            "corpora": list(self.corpora),
            "recipes": list(self.recipes),
            "splits": list(self.splits),
            "seeds": list(self.seeds),
            "reference": self.reference,
        }


def make_plan(
    run_uri: str,
    corpora: Mapping[str, str],
    *,
    recipes: Sequence[str],
    splits: Sequence[str],
    seeds: Sequence[int],
    reference: str,
    configure: Callable[[str], Config],
) -> AblationPlan:
    """Plan the trials; `configure` gives a recipe's configuration with all of the user's settings.

    Raises ConfigError for an unknown recipe or split, DataError for pairs that are not there.
    """
    _check_choices(corpora, recipes, seeds)
    configs = {recipe: configure(recipe) for recipe in recipes}
    base = next(iter(configs.values()))
    if reference not in recipes:
        raise ConfigError(
            "the reference is not among the recipes", got=reference, expected=", ".join(recipes)
        )
    trials = []
    for corpus, uri in corpora.items():
        fingerprint = require_pairs(Store(uri)).fingerprint
        for split in splits:
            place = {"data": {"pairs_uri": uri, "run_uri": run_uri}, "split": parse_split(split)}
            free = vary(base, recipe=TRAINING_FREE, **place)
            trials.append(_trial(corpus, TRAINING_FREE, split, 0, free, fingerprint))
            for recipe, config in configs.items():
                for seed in seeds:
                    one = vary(config, recipe=recipe, train={"seed": seed}, **place)
                    trials.append(_trial(corpus, recipe, split, seed, one, fingerprint))
    return AblationPlan(
        run_uri, dict(corpora), tuple(recipes), tuple(splits), tuple(seeds), reference, tuple(trials)
    )


def parse_split(text: str) -> dict[str, Any]:
    """Return the split settings of `kind` or `kind:seed`. Raises ConfigError.

    >>> parse_split("random:2")
    {'kind': 'random', 'seed': 2}
    """
    kind, _, seed = text.partition(":")
    kinds = [name for name in get_args(SplitKind) if name != "none"]
    if kind not in kinds or not (seed.isdigit() or not seed):
        raise ConfigError(
            "not a class split", got=text, expected=f"{', '.join(kinds)}, with a seed if need be: random:1"
        )
    return {"kind": kind, "seed": int(seed or 0)}


def _check_choices(corpora: Mapping[str, str], recipes: Sequence[str], seeds: Sequence[int]) -> None:
    for name in corpora:
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(
                "a corpus needs a plain name",
                got=name,
                expected="letters, digits, - and _: --pairs titles=runs/t/pairs",
            )
    for what, given in (("--pairs", corpora), ("--recipe", recipes), ("--seed", seeds)):
        if not given:
            raise ConfigError(f"no {what} was given", expected="at least one, or --preset core")
        if len(set(given)) != len(given):
            raise ConfigError(f"a {what} is given twice", got=", ".join(str(one) for one in given))


def _trial(corpus: str, recipe: str, split: str, seed: int, config: Config, fingerprint: str) -> Trial:
    if recipe == TRAINING_FREE:
        sections = config.stage_config(*FREE_SECTIONS) | {"region_grid": config.model.region_grid}
        sections |= {"refit": config.train.refit}
        facts: dict[str, int] = {}
    else:
        sections = config.stage_config(*SECTIONS)
        facts = version_facts(config.model.method)
    key = {"pairs": fingerprint, "config": sections} | facts
    return Trial(corpus, recipe, split, seed, config, key)
