"""The ablation on a real Ray: a trial equals train + evaluate, finished trials stay, failed ones do not stop the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.pairs_run import PairsSpec, tiny_config, write_pairs
from tests.stages.test_ablate_plan import plan_of
from zscmr_ray.errors import RefusedError, TrainingError
from zscmr_ray.lease import take_lease
from zscmr_ray.recipes import vary
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.ablate import AblationPlan, run_ablate
from zscmr_ray.stages.evaluate import run_evaluate
from zscmr_ray.stages.train import run_train

# Ray's own: a configuration class that warns of its defaults, sockets it closes late.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def small_plan(run: Path, *, recipes: tuple[str, ...] = ("fgan", "infonce")) -> AblationPlan:
    """Few resamples, one split."""
    plan = plan_of(run, recipes=recipes)
    few = {"evaluate": {"bootstrap_resamples": 100, "num_gallery_queries": 0}}
    trials = tuple(
        replace(trial, config=vary(trial.config, recipe=trial.recipe, **few))
        for trial in plan.trials
        if trial.split == "even_odd"
    )
    return replace(plan, splits=("even_odd",), trials=trials)


def written(run: Path) -> dict[str, float]:
    """Every trial's record with the time it was written."""
    return {path.name: path.stat().st_mtime for path in (run / "ablation" / "trials").rglob("*.json")}


@pytest.fixture(scope="module")
def finished(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole")
    write_pairs(tiny_config(run))
    result = run_ablate(small_plan(run))
    assert result.counts == {"trials": 3, "done": 3, "failed": 0, "skipped": 0}
    return run


def test_the_table_has_every_row_with_chance_interval_gain_and_looks(finished: Path) -> None:
    table = json.loads((finished / "ablation" / "table.json").read_text())
    (corpus,) = table["corpora"]
    titles = [(row["recipe"], row["key"]) for row in corpus["rows"]]
    assert titles == [
        ("fgan", "both"),
        ("fgan", "regions"),
        ("fgan", "labels"),
        ("infonce", "regions"),
        ("training_free", "cca"),
        ("training_free", "ridge"),
    ]
    for row in corpus["rows"]:
        assert 0 < row["mean"]["chance"] < 1 and row["mean"]["interval"][0] <= row["mean"]["map"]
        assert (row["gain"] is None) == row["is_reference"]
    assert table["unseen_evaluations"] == 3
    page = (finished / "ablation" / "ablation.html").read_text()
    assert "3 of 3 trials" in page and "infonce" in page
    assert "| infonce |" in (finished / "ablation" / "table.md").read_text()


def test_a_trial_equals_train_and_evaluate(finished: Path) -> None:
    plan = small_plan(finished)
    trial = next(one for one in plan.trials if one.recipe == "fgan")
    config = vary(trial.config, recipe="fgan", data={"run_uri": str(finished / "verbs")})
    run_train(config)
    run_evaluate(config)
    report = stage_store(config, "evaluate").read_json("report.json")
    record = json.loads((finished / "ablation" / "trials" / f"{trial.name}.json").read_text())
    assert record["selection"]["steps"] == report["selection"]["steps"]
    assert record["selection"]["score"] == pytest.approx(report["selection"]["score"], abs=1e-4)
    for ours, theirs in zip(record["rows"], report["methods"], strict=False):
        assert (ours["key"], ours["name"]) == (theirs["key"], theirs["name"])
        for condition, numbers in theirs["classes"].items():
            mine = ours["classes"][condition]["average"]
            assert mine["map"] == pytest.approx(numbers["average"]["map"], abs=1e-4)
            assert mine["interval"] == pytest.approx(numbers["average"]["interval"], abs=1e-3)
    free = next(one for one in plan.trials if one.is_training_free)
    record = json.loads((finished / "ablation" / "trials" / f"{free.name}.json").read_text())
    by_key = {row["key"]: row for row in report["methods"]}
    for row in record["rows"]:
        wanted = by_key[row["key"]]["classes"]["U|U"]["average"]["map"]
        assert row["classes"]["U|U"]["average"]["map"] == pytest.approx(wanted, abs=1e-4)


def test_finished_trials_are_never_redone_and_a_plan_may_grow(finished: Path) -> None:
    before = written(finished)
    assert run_ablate(small_plan(finished)).skipped
    grown = run_ablate(small_plan(finished, recipes=("fgan", "infonce", "zs_inn")))
    assert grown.counts == {"trials": 4, "done": 4, "failed": 0, "skipped": 3}
    after = written(finished)
    assert {name: after[name] for name in before} == before and len(after) == 4


def test_a_failed_trial_is_reported_the_others_go_on_and_it_is_tried_again(
    ray_local: None, tmp_path: Path
) -> None:
    write_pairs(tiny_config(tmp_path), PairsSpec(not_finite=range(120)))
    bad = small_plan(tmp_path)
    (tmp_path / "good").mkdir()
    write_pairs(tiny_config(tmp_path / "good"))
    good = small_plan(tmp_path / "good", recipes=("infonce",))
    renamed = tuple(replace(trial, corpus="good") for trial in good.trials)
    broken = next(trial for trial in bad.trials if trial.recipe == "infonce")
    plan = replace(
        good,
        run_uri=bad.run_uri,
        corpora={"small": str(tmp_path / "pairs"), "good": str(tmp_path / "good" / "pairs")},
        trials=(broken, *renamed),
    )
    for attempt in (1, 2):
        with pytest.raises(TrainingError, match=r"1 of 3 trials failed.*the loss is nan"):
            run_ablate(plan)
        table = json.loads((tmp_path / "ablation" / "table.json").read_text())
        assert table["num_done"] == 2 and len(table["failures"]) == 1, attempt
        assert "the loss is nan" in (tmp_path / "ablation" / "ablation.html").read_text()
    assert len(list((tmp_path / "ablation" / "failed").rglob("*.json"))) == 1


def test_two_drivers_do_not_share_a_directory(finished: Path) -> None:
    plan = small_plan(finished)
    with take_lease(plan.store, "ablate"), pytest.raises(RefusedError, match="already at work"):
        run_ablate(plan)
