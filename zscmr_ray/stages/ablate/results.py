"""From the records of a plan to its table: per row each split, their mean with spread and interval, gain and p.

What it is: `retrieval/over_splits.py` and `retrieval/paired.py` over what trials wrote. What it is not: layout (`page.py`).
A row is a recipe's score: its main one (fused, or what it has), then its others (regions, labels; IMFA's exact and
re-ranked); CCA, ridge and ConSE are rows of the trial without a training. A row lacks the splits whose trials lack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zscmr_ray.retrieval.over_splits import mean_of_runs, over_splits
from zscmr_ray.retrieval.paired import average_by_class, compare_classes
from zscmr_ray.stages.ablate.plan import TRAINING_FREE, AblationPlan, Trial

CONDITION = "U|U"
CONDITIONS = ("U|U", "S|S", "U|all", "S|all", "H")

Record = Mapping[str, Any]
Runs = dict[str, dict[int, Record]]
"""A row's numbers by split and seed, as `evaluate_method` gave them."""


def make_table(
    plan: AblationPlan,
    records: Mapping[str, Record],
    *,
    failures: Sequence[Mapping[str, Any]] = (),
    looks: Mapping[str, int],
) -> dict[str, Any]:
    """Return table.json: plain values, every number with chance and interval; `records` by the trials' names."""
    config = plan.trials[0].config.evaluate
    settings = {"num_resamples": config.bootstrap_resamples, "seed": config.seed}
    return {
        "title": f"Ablation: {len(plan.recipes)} recipes, {len(plan.splits)} class splits, {len(plan.corpora)} corpora",
        "plan": plan.describe(),
        "settings": settings,
        "num_trials": len(plan.trials),
        "num_done": sum(trial.name in records for trial in plan.trials),
        "cpu_s": sum(records[trial.name]["cpu_s"] for trial in plan.trials if trial.name in records),
        "failures": [dict(one) for one in failures],
        "unseen_evaluations": sum(looks.values()),
        "corpora": [_corpus(plan, name, records, looks, settings) for name in plan.corpora],
    }


def _corpus(
    plan: AblationPlan,
    corpus: str,
    records: Mapping[str, Record],
    looks: Mapping[str, int],
    settings: Mapping[str, int],
) -> dict[str, Any]:
    trials = [trial for trial in plan.trials if trial.corpus == corpus]
    done = [(trial, records[trial.name]) for trial in trials if trial.name in records]
    reference = _runs(plan, done, plan.reference, _main_key(done, plan.reference))
    rows = []
    for recipe in (*plan.recipes, TRAINING_FREE):
        main = _main_key(done, recipe)
        for key, name in _row_names(done, recipe):
            runs = _runs(plan, done, recipe, key)
            if runs:
                is_main = recipe == TRAINING_FREE or key == main
                rows.append(
                    {"recipe": recipe, "key": key, "name": name, "is_main": is_main}
                    | {"is_reference": recipe == plan.reference and key == main}
                    | _numbers(runs, reference, settings)
                    | _training(done, recipe)
                )
    classes = {trial.split: record["classes"] for trial, record in done}
    return {
        "name": corpus,
        "splits": {
            split: {
                "classes": classes.get(split),
                "unseen_evaluations": sum(looks[trial.name] for trial in trials if trial.split == split),
            }
            for split in plan.splits
        },
        "rows": rows,
        "not_run": _not_run(done),
    }


def _numbers(runs: Runs, reference: Runs, settings: Mapping[str, int]) -> dict[str, Any]:
    """One row: its cells by split, the mean over splits, all conditions, and the test against the reference."""
    chosen = {split: [one[CONDITION] for one in seeds.values()] for split, seeds in runs.items()}
    cells = {split: mean_of_runs(found, **settings) for split, found in chosen.items()}
    mean = over_splits(_evenly(chosen), **settings)
    mean["times_chance"] = mean["map"] / mean["chance"] if mean["chance"] else None
    return {
        "cells": cells,
        "mean": mean,
        "conditions": {
            split: {name: _plain(next(iter(seeds.values())).get(name)) for name in CONDITIONS}
            for split, seeds in runs.items()
        },
        "gain": _gain(runs, reference),
    }


def _evenly(chosen: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """As many seeds of every split as the split with the fewest has: each split weighs alike."""
    fewest = min(len(found) for found in chosen.values())
    return {split: found[:fewest] for split, found in chosen.items()}


def _plain(condition: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A condition's average alone: map, chance, interval."""
    return None if condition is None else dict(condition["average"])


def _gain(runs: Runs, reference: Runs) -> dict[str, Any] | None:
    """The paired class test against the reference over the splits and seeds that both have; None for the reference."""
    ours, theirs = [], []
    for split, seeds in reference.items():
        for seed, other in seeds.items():
            # What has no training has no seed: it stands against each of the reference's.
            one = runs.get(split, {}).get(seed) or runs.get(split, {}).get(0)
            if one is not None and one is not other:
                ours.append(average_by_class(one[CONDITION]))
                theirs.append(average_by_class(other[CONDITION]))
    return compare_classes(ours, theirs).to_json() if ours else None


def _runs(plan: AblationPlan, done: Sequence[tuple[Trial, Record]], recipe: str, key: str | None) -> Runs:
    """A row's numbers by split and seed, in the plan's order; records without unseen classes are left out."""
    found: Runs = {}
    for split in plan.splits:
        for trial, record in done:
            if trial.recipe == recipe and trial.split == split:
                for row in record["rows"]:
                    if row["key"] == key and CONDITION in row["classes"]:
                        found.setdefault(split, {})[trial.seed] = row["classes"]
    return found


def _main_key(done: Sequence[tuple[Trial, Record]], recipe: str) -> str | None:
    return next((record["main"] for trial, record in done if trial.recipe == recipe), None)


def _row_names(done: Sequence[tuple[Trial, Record]], recipe: str) -> list[tuple[str, str]]:
    """(key, name) of a recipe's rows, the main one first."""
    main = _main_key(done, recipe)
    names = {
        row["key"]: row["name"] for trial, record in done if trial.recipe == recipe for row in record["rows"]
    }
    return sorted(names.items(), key=lambda item: item[0] != main)


def _training(done: Sequence[tuple[Trial, Record]], recipe: str) -> dict[str, Any]:
    """What the selection said, by split, of the first seed: the score on pseudo-unseen classes, steps, seconds."""
    found: dict[str, Any] = {}
    for trial, record in done:
        if trial.recipe == recipe and record["selection"] is not None:
            found.setdefault(
                trial.split,
                {name: record["selection"].get(name) for name in ("score", "chance", "epoch", "steps")}
                | {name: record[name] for name in ("train_s", "evaluate_s", "cpu_s")},
            )
    return {"selection": found}


def _not_run(done: Sequence[tuple[Trial, Record]]) -> list[dict[str, str]]:
    found = {(one["name"], one["reason"]) for _, record in done for one in record["not_run"]}
    return [{"name": name, "reason": reason} for name, reason in sorted(found)]
