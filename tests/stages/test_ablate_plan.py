"""The plan of an ablation: presets name real recipes, names follow what decides the numbers, wrong choices are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pairs_run import PairsSpec, tiny_config, write_pairs
from zscmr_ray.config import Config
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.models.versions import METHOD_VERSIONS, VERSION
from zscmr_ray.recipes import recipe_config, vary
from zscmr_ray.stages.ablate.plan import PRESETS, TRAINING_FREE, AblationPlan, make_plan, parse_split


def plan_of(
    run: Path, *, recipes: tuple[str, ...] = ("fgan", "infonce"), **sections: dict[str, object]
) -> AblationPlan:
    """A plan on the pairs below `run`; `sections` change every recipe's configuration."""

    def configure(name: str) -> Config:
        recipe = recipe_config(name)
        values = tiny_config(run, **sections).model_dump()
        return vary(
            recipe,
            recipe=name,
            model={"width": 16, "latent": 8},
            train=values["train"] | {"refit": True},
            optim=values["optim"],
        )

    return make_plan(
        str(run / "ablation"),
        {"small": str(run / "pairs")},
        recipes=recipes,
        splits=("even_odd", "random:1"),
        seeds=(0,),
        reference=recipes[0],
        configure=configure,
    )


def names(plan: AblationPlan) -> list[str]:
    return [trial.name for trial in plan.trials]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_name_recipes_and_splits_that_exist(name: str) -> None:
    preset = PRESETS[name]
    configs = [recipe_config(recipe) for recipe in preset.recipes]
    assert len({config.model_dump_json(exclude={"recipe"}) for config in configs}) == len(configs)
    assert all(parse_split(split) for split in preset.splits)
    assert preset.reference in preset.recipes
    assert len(PRESETS["core"].recipes) == 10 and len(PRESETS["core"].splits) == 3


def test_every_split_has_its_training_free_trial_and_each_recipe_its_own(tmp_path: Path) -> None:
    write_pairs(tiny_config(tmp_path))
    trials = plan_of(tmp_path).trials
    assert [(trial.split, trial.recipe) for trial in trials] == [
        (split, recipe) for split in ("even_odd", "random:1") for recipe in (TRAINING_FREE, "fgan", "infonce")
    ]
    assert [trial.config.split.seed for trial in trials] == [0, 0, 0, 1, 1, 1]
    assert all(trial.config.data.pairs_uri == str(tmp_path / "pairs") for trial in trials)
    assert len(set(names(plan_of(tmp_path)))) == len(trials)


def test_a_name_is_what_decides_the_numbers(tmp_path: Path) -> None:
    write_pairs(tiny_config(tmp_path))
    first = names(plan_of(tmp_path))
    assert names(plan_of(tmp_path)) == first
    faster = plan_of(tmp_path, train={"log_every_steps": 3})
    assert names(faster) == first, "speed changes no number"
    longer = names(plan_of(tmp_path, optim={"max_epochs": 5}))
    same = set(first) & set(longer)
    assert same == {name for name in first if TRAINING_FREE in name}, "no training, no epochs"
    grown = names(plan_of(tmp_path, recipes=("fgan", "infonce", "zs_inn")))
    assert set(first) < set(grown)


def test_a_method_s_other_version_is_another_trial_and_no_other_method_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tiny_config(tmp_path))
    recipes = ("best", "fgan")
    plans = []
    for version in (2, 3):
        monkeypatch.setitem(METHOD_VERSIONS, "best", version)
        plans.append(plan_of(tmp_path, recipes=recipes))
    old, new = (set(names(plan)) for plan in plans)
    assert all("/best-" in name for name in old ^ new) and len(old - new) == 2
    assert all((VERSION in trial.key) == (trial.recipe == "best") for trial in plans[0].trials)
    monkeypatch.delitem(METHOD_VERSIONS, "best")
    assert all(trial.key.keys() == {"pairs", "config"} for trial in plan_of(tmp_path, recipes=recipes).trials)


def test_other_pairs_are_other_trials(tmp_path: Path) -> None:
    found = []
    for number in (15, 16):
        write_pairs(tiny_config(tmp_path), PairsSpec(rows_per_class=number))
        found.append(names(plan_of(tmp_path)))
    assert not set(found[0]) & set(found[1])


def test_wrong_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="preprocess is not complete"):
        plan_of(tmp_path)
    write_pairs(tiny_config(tmp_path))
    with pytest.raises(ConfigError, match="given twice"):
        plan_of(tmp_path, recipes=("fgan", "fgan"))
    with pytest.raises(ConfigError, match="no --recipe was given"):
        make_plan("x", {"a": "b"}, recipes=(), splits=(), seeds=(0,), reference="", configure=recipe_config)
    with pytest.raises(ConfigError, match="plain name"):
        make_plan(
            "x", {"a/b": "c"}, recipes=("fgan",), splits=(), seeds=(0,), reference="", configure=recipe_config
        )
    for text in ("odd_even", "random:x", "none", ""):
        with pytest.raises(ConfigError, match="not a class split"):
            parse_split(text)
