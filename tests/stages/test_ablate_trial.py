"""One trial without Ray: its rows, repeatability, coarser regions, the look it announces, and what it must not keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pairs_run import IMAGE_CHANNELS, PairsSpec, tiny_config, write_pairs
from tests.stages.test_ablate_plan import plan_of
from zscmr_ray.errors import TrainingError
from zscmr_ray.recipes import vary
from zscmr_ray.stages import require_pairs
from zscmr_ray.stages.ablate.plan import TRAINING_FREE, Trial
from zscmr_ray.stages.ablate.trial import CorpusFeatures, run_trial
from zscmr_ray.stages.measure.rows import read_features
from zscmr_ray.storage import Store


def trial_of(run: Path, recipe: str, **sections: dict[str, Any]) -> Trial:
    """The even/odd trial of a recipe on the pairs below `run`."""
    recipes = ("fgan",) if recipe == TRAINING_FREE else (recipe,)
    found = next(one for one in plan_of(run, recipes=recipes).trials if one.recipe == recipe)
    few = {"evaluate": {"bootstrap_resamples": 100}} | sections
    return replace(found, config=vary(found.config, recipe=recipe, **few))


def corpus_of(run: Path, region_grid: int | None = None) -> CorpusFeatures:
    """The pairs in memory."""
    store = Store(run / "pairs")
    manifest = require_pairs(store)
    return CorpusFeatures(read_features(store, manifest, region_grid=region_grid), dict(manifest.info))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(tiny_config(folder))
    return folder


@pytest.mark.parametrize(
    ("recipe", "keys", "main"),
    [
        ("fgan", ["regions", "labels", "both"], "both"),
        ("infonce", ["regions"], "regions"),
        ("imfa", ["regions", "fused_exact", "fused_reranked"], "regions"),
        (TRAINING_FREE, ["cca", "ridge"], None),
    ],
)
def test_a_trial_has_the_rows_of_its_method(
    run: Path, recipe: str, keys: list[str], main: str | None
) -> None:
    looked: list[str] = []
    record = run_trial(trial_of(run, recipe), corpus_of(run), before_evaluation=lambda: looked.append("once"))
    assert [row["key"] for row in record["rows"]] == keys
    assert record["main"] == main and looked == ["once"]
    for row in record["rows"]:
        average = row["classes"]["U|U"]["average"]
        low, high = average["interval"]
        assert low <= average["map"] <= high and 0 < average["chance"] < 1
        values = [
            value for scores in row["classes"]["U|U"]["text_to_image"]["queries"].values() for value in scores
        ]
        assert np.mean(values) == pytest.approx(row["classes"]["U|U"]["text_to_image"]["map"], abs=1e-4)
    if recipe == TRAINING_FREE:
        assert record["selection"] is None
        assert record["not_run"] == [{"name": "ConSE", "reason": "the teacher's classes have no names here"}]
    else:
        assert record["selection"]["rows"] == "pseudo-unseen" and record["selection"]["refit"] is True
        assert record["classes"]["trained"] == record["classes"]["seen"], "refit trains on every seen class"


def test_the_same_trial_gives_the_same_numbers_and_another_seed_others(run: Path) -> None:
    trial, corpus = trial_of(run, "infonce"), corpus_of(run)
    one, again = run_trial(trial, corpus), run_trial(trial, corpus)
    assert one["rows"] == again["rows"]
    other = replace(trial, config=vary(trial.config, recipe="infonce", train={"seed": 1}))
    assert run_trial(other, corpus)["rows"] != one["rows"]


def test_coarser_regions_are_pooled_when_the_corpus_is_read(run: Path) -> None:
    corpus = corpus_of(run, region_grid=1)
    assert corpus.features.regions_NRD.shape[1:] == (1, IMAGE_CHANNELS)
    whole = corpus_of(run).features.regions_NRD.astype(np.float32).mean(1)
    assert np.allclose(corpus.features.regions_NRD[:, 0], whole, atol=2e-3)
    coarse = trial_of(run, "fgan", model={"region_grid": 1})
    assert run_trial(coarse, corpus)["rows"]


def test_a_loss_that_is_not_finite_is_raised_before_anything_unseen_is_looked_at(tmp_path: Path) -> None:
    write_pairs(tiny_config(tmp_path), PairsSpec(not_finite=range(120)))
    looked: list[str] = []
    with pytest.raises(TrainingError, match="the loss is nan"):
        run_trial(
            trial_of(tmp_path, "infonce"), corpus_of(tmp_path), before_evaluation=lambda: looked.append("x")
        )
    assert not looked
