"""Two evaluated runs compared by class: the same numbers as their reports, words, JSON, refusals, the verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stages.small_run import small_config, write_checkpoint, write_pairs
from zscmr_ray.cli.main import run
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.retrieval.paired import average_by_class
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.compare import compare_runs, comparison_lines
from zscmr_ray.stages.evaluate import run_evaluate


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    config = small_config(str(folder), num_gallery_queries=0)
    write_pairs(config)
    write_checkpoint(config)
    run_evaluate(config)
    return str(folder)


def test_a_run_against_its_own_baseline(evaluated: str) -> None:
    found = compare_runs([evaluated], [evaluated], their_method="cca")
    rows = {
        row["key"]: row
        for row in stage_store(small_config(evaluated), "evaluate").read_json("report.json")["methods"]
    }
    ours, theirs = (average_by_class(rows[key]["classes"]["U|U"]) for key in ("both", "cca"))
    assert found.gains == pytest.approx({name: ours[name] - theirs[name] for name in ours})
    assert found.test.num_classes == 4 and found.test.is_exact and 2 / 16 <= found.test.p <= 1
    text = "\n".join(comparison_lines(found))
    assert "chance" in text and "CCA" in text and f"p = {found.test.p:.4f}" in text and "note" not in text


def test_a_run_against_itself_is_no_difference(evaluated: str) -> None:
    found = compare_runs([evaluated, evaluated], [evaluated, evaluated])
    assert found.test.p == 1.0 and found.test.mean_gain == 0.0 and len(found.ours.averages) == 2


def test_other_pairs_are_said(evaluated: str, tmp_path: Path) -> None:
    config = small_config(str(tmp_path), num_gallery_queries=0)
    write_pairs(config, seed=1)
    write_checkpoint(config)
    run_evaluate(config)
    assert "other pairs" in comparison_lines(compare_runs([evaluated], [str(tmp_path)]))[-1]


def test_what_cannot_be_compared_is_refused(evaluated: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no report to compare"):
        compare_runs([evaluated], [str(tmp_path)])
    with pytest.raises(DataError, match="no such row"):
        compare_runs([evaluated], [evaluated], their_method="best")
    with pytest.raises(DataError, match="no numbers for X"):
        compare_runs([evaluated], [evaluated], condition="X")
    with pytest.raises(ConfigError, match="2 and 1 runs"):
        compare_runs([evaluated, evaluated], [evaluated])


def test_the_verb_prints_words_or_json(evaluated: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", evaluated, evaluated, "--method-b", "cca"]) == 0
    assert "A over B, by class" in capsys.readouterr().out
    assert run(["compare", evaluated, evaluated, "--method-b", "cca", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["theirs"]["name"] == "CCA" and 0 < found["test"]["p"] <= 1
    assert run(["compare", evaluated, "nowhere"]) == 3
