"""From records to the table, its markdown and its page: partial plans, several seeds, gains against the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pairs_run import tiny_config, write_pairs
from tests.stages.test_ablate_plan import plan_of
from tests.stages.test_report import Page
from zscmr_ray.retrieval.searches import DIRECTIONS
from zscmr_ray.stages.ablate.page import chart, markdown, render
from zscmr_ray.stages.ablate.plan import AblationPlan, Trial
from zscmr_ray.stages.ablate.results import make_table

CLASSES = tuple(f"class {number}" for number in range(6))


def condition(level: float, *, shift: float = 0.0) -> dict[str, Any]:
    """U|U numbers around a level; `shift` moves every class alike."""
    rng = np.random.default_rng(round(1000 * level))
    scores = {
        name: [round(float(level + shift + 0.05 * value), 4) for value in rng.standard_normal(4)]
        for name in CLASSES
    }
    mean = float(np.mean([value for values in scores.values() for value in values]))
    per_class = {name: float(np.mean(values)) for name, values in scores.items()}
    return {direction: {"queries": scores, "per_class": per_class} for direction in DIRECTIONS} | {
        "average": {"map": mean, "chance": 0.1, "interval": [mean - 0.02, mean + 0.02]}
    }


def record_of(trial: Trial, *, shift: float = 0.0) -> dict[str, Any]:
    """A finished trial as `run_trial` writes it, without a training."""
    level = {"even_odd": 0.3, "random:1": 0.4}[trial.split]
    keys = {"fgan": ("regions", "both"), "infonce": ("regions",), "training_free": ("cca",)}[trial.recipe]
    return {
        "corpus": trial.corpus,
        "recipe": trial.recipe,
        "split": trial.split,
        "seed": trial.seed,
        "main": None if trial.is_training_free else keys[-1],
        "rows": [
            {"key": key, "name": f"<{key.upper()}>, {key}", "classes": {"U|U": condition(level, shift=shift)}}
            for key in keys
        ],
        "not_run": [{"name": "ConSE", "reason": "no names"}],
        "selection": None
        if trial.is_training_free
        else {"score": 0.5, "chance": 0.2, "steps": 30, "epoch": 2.0},
        "classes": {"trained": 6, "pseudo_unseen": 2, "unseen": 6, "seen": 6, "dropped": 0},
        "num_items": 100,
        "train_s": 10.0,
        "evaluate_s": 2.0,
        "cpu_s": 11.5,
    }


@pytest.fixture
def plan(tmp_path: Path) -> AblationPlan:
    write_pairs(tiny_config(tmp_path))
    return plan_of(tmp_path)


def table_of(plan: AblationPlan, records: dict[str, dict[str, Any]], **options: Any) -> dict[str, Any]:
    return make_table(plan, records, looks={trial.name: 1 for trial in plan.trials}, **options)


def all_records(plan: AblationPlan) -> dict[str, dict[str, Any]]:
    return {trial.name: record_of(trial, shift=0.1 * (trial.recipe == "infonce")) for trial in plan.trials}


def test_means_spread_and_gains(plan: AblationPlan) -> None:
    table = table_of(plan, all_records(plan))
    rows = {(row["recipe"], row["key"]): row for row in table["corpora"][0]["rows"]}
    assert list(rows) == [
        ("fgan", "both"),
        ("fgan", "regions"),
        ("infonce", "regions"),
        ("training_free", "cca"),
    ]
    reference, better = rows["fgan", "both"], rows["infonce", "regions"]
    cells = [cell["map"] for cell in reference["cells"].values()]
    assert reference["mean"]["map"] == pytest.approx(np.mean(cells))
    assert reference["mean"]["std"] == pytest.approx(np.std(cells, ddof=1))
    assert reference["mean"]["times_chance"] == pytest.approx(reference["mean"]["map"] / 0.1)
    assert reference["is_reference"] and reference["gain"] is None
    assert better["gain"]["mean_gain"] == pytest.approx(0.1, abs=1e-4)
    assert better["gain"]["p"] == pytest.approx(2 / 2**6) and better["gain"]["num_classes"] == 6
    assert rows["training_free", "cca"]["gain"]["mean_gain"] == pytest.approx(0.0)
    assert table["unseen_evaluations"] == len(plan.trials) == table["num_done"]


def test_what_is_not_finished_is_left_out_and_said(plan: AblationPlan) -> None:
    records = {
        trial.name: record_of(trial)
        for trial in plan.trials
        if (trial.recipe, trial.split) != ("infonce", "random:1")
    }
    table = table_of(plan, records, failures=[{"recipe": "infonce", "corpus": "small", "split": "random:1",
                                               "seed": 0, "error": "the <loss> is nan"}])  # fmt: skip
    row = next(one for one in table["corpora"][0]["rows"] if one["recipe"] == "infonce")
    assert list(row["cells"]) == ["even_odd"] and row["mean"]["std"] is None
    assert "1 of 2 splits" in markdown(table) and "5 of 6 trials, 1 failed" in markdown(table)
    page = render(table)
    assert "1 of 2 splits" in page and "the &lt;loss&gt; is nan" in page


def test_nothing_finished_is_a_page_too(plan: AblationPlan) -> None:
    table = table_of(plan, {})
    assert "No trial of this corpus is finished." in render(table)
    assert markdown(table).startswith("0 of 6 trials")


def test_the_page_is_whole_escaped_and_refers_to_nothing_outside(plan: AblationPlan) -> None:
    table = table_of(plan, all_records(plan))
    text = render(table)
    page = Page(text)
    assert not page.open and not page.outside
    assert "<CCA>" not in text and "&lt;CCA&gt;" in text
    for row in table["corpora"][0]["rows"]:
        shown = f"{row['mean']['map']:.3f}"[1:]
        assert shown in text and shown in markdown(table)


def test_the_chart_lies_inside_its_picture(plan: AblationPlan) -> None:
    drawn = chart(table_of(plan, all_records(plan))["corpora"][0])
    assert drawn is not None
    for row in drawn["rows"]:
        assert drawn["left"] <= row["from_x"] <= row["mean_x"] <= row["to_x"] <= drawn["size"]["width"]
        assert len(row["rings"]) == 2 and row["y"] < drawn["bottom"]


def test_several_seeds_are_averaged_and_paired_by_seed(plan: AblationPlan) -> None:
    twice = [replace(trial, seed=1) for trial in plan.trials if not trial.is_training_free]
    # Names follow the key, and these trials share it: the second seed's records stand beside the first's.
    other = [replace(trial, key=trial.key | {"seed": 1}) for trial in twice]
    both = replace(plan, seeds=(0, 1), trials=(*plan.trials, *other))
    table = table_of(both, all_records(both))
    row = next(one for one in table["corpora"][0]["rows"] if one["recipe"] == "infonce")
    assert row["gain"]["mean_gain"] == pytest.approx(0.1, abs=1e-4)
    free = next(one for one in table["corpora"][0]["rows"] if one["key"] == "cca")
    assert free["gain"]["num_classes"] == 6
