"""Evaluating IMFA: exact, re-ranked and distilled rows, each named; too many pairs are a stated reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.stages.small_run import CHANNELS, small_config, write_checkpoint, write_pairs
from zscmr_ray.config import Config
from zscmr_ray.engine.checkpoint import BlockRecord, save_checkpoint
from zscmr_ray.models.build import build_model
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.evaluate import run_evaluate


def evaluated(config: Config, architecture: dict[str, Any]) -> dict[str, Any]:
    write_pairs(config)
    meta = write_checkpoint(config)
    sizes = {"image_channels": CHANNELS, "text_channels": CHANNELS, "width": 16}
    model = build_model(architecture | sizes, seed=0)
    blocks = tuple(BlockRecord(name=b.name, start=b.start, stop=b.stop) for b in model.blocks)
    changes = {"architecture": model.architecture(), "blocks": blocks, "label_weight": 0.0}
    save_checkpoint(stage_store(config, "train"), model, meta.model_copy(update=changes))
    run_evaluate(config)
    report: dict[str, Any] = stage_store(config, "evaluate").read_json("report.json")
    return report


def average(report: dict[str, Any], key: str) -> float:
    method = next(one for one in report["methods"] if one["key"] == key)
    return float(method["classes"]["U|U"]["average"]["map"])


def test_imfa_has_a_row_for_each_way_to_retrieve(tmp_path: Path) -> None:
    imfa = {"method": "inn", "attention": "fused", "attention_width": 4}
    reports = [
        evaluated(small_config(str(tmp_path / str(top_k)), rerank_top_k=top_k), imfa) for top_k in (3, 10_000)
    ]
    names = {method["key"]: method["name"] for method in reports[0]["methods"]}
    assert names == {
        "regions": "IMFA (ZS_INN_FUSE), distilled vector",
        "fused_exact": "IMFA (ZS_INN_FUSE), exact",
        "fused_reranked": "IMFA (ZS_INN_FUSE), best 3 by vector re-ranked",
        "cca": "CCA",
        "ridge": "ridge regression",
        "conse": "ConSE",
    }
    assert reports[0]["main"] == "regions"
    assert average(reports[1], "fused_reranked") == pytest.approx(average(reports[1], "fused_exact"))
    assert average(reports[0], "fused_exact") == pytest.approx(average(reports[1], "fused_exact"))
    assert set(reports[0]["methods"][1]["instance"]) == {"test", "test U"}


def test_too_many_pairs_are_a_reason_and_no_number(tmp_path: Path) -> None:
    config = small_config(str(tmp_path), max_exact_pairs=10)
    report = evaluated(config, {"method": "inn", "attention": "fused", "attention_width": 4})
    assert [one["key"] for one in report["methods"]][:2] == ["regions", "cca"]
    assert all("max_exact_pairs" in one["reason"] for one in report["not_run"])
    assert len(report["not_run"]) == 2


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ({"method": "inn", "attention": "self"}, "ZS_INN_SELF, by vector"),
        ({"method": "inn", "attention": "mean"}, "ZS_INN, by vector"),
        ({"method": "tower", "same_class": "positive"}, "SupCon towers, by vector"),
        ({"method": "tower"}, "InfoNCE towers, by vector"),
    ],
)
def test_methods_by_vector_have_one_row(tmp_path: Path, architecture: dict[str, Any], name: str) -> None:
    report = evaluated(small_config(str(tmp_path)), architecture)
    assert report["methods"][0]["name"] == name
    assert [one["key"] for one in report["methods"]] == ["regions", "cca", "ridge", "conse"]


@pytest.mark.parametrize(("attention", "has_maps"), [("fused", True), ("self", True), ("mean", False)])
def test_attention_over_regions_reaches_the_page(tmp_path: Path, attention: str, has_maps: bool) -> None:
    config = small_config(str(tmp_path))
    evaluated(config, {"method": "inn", "attention": attention, "attention_width": 4})
    store = stage_store(config, "evaluate")
    maps = store.read_json("examples.json")["heat_maps"]
    assert bool(maps) == has_maps
    assert ("What the image side looks at" in store.read_bytes("report.html").decode()) == has_maps
