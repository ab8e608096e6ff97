"""Means over class splits: against plain arithmetic, intervals that resample shared classes together, one run alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zscmr_ray.retrieval.over_splits import mean_of_runs, over_splits
from zscmr_ray.retrieval.protocol import ClassGroups, evaluate_method
from zscmr_ray.retrieval.searches import DIRECTIONS, Corpus, Towers


def run_of(scores: dict[str, list[float]], chance: float = 0.1) -> dict[str, Any]:
    """A condition whose directions are alike."""
    mean = float(np.mean([value for values in scores.values() for value in values]))
    return {direction: {"queries": scores} for direction in DIRECTIONS} | {
        "average": {"map": mean, "chance": chance, "interval": [mean - 0.01, mean + 0.01]}
    }


def test_means_and_spread_are_plain_arithmetic() -> None:
    runs = {
        "one": [run_of({"a": [0.1, 0.3]}), run_of({"a": [0.3, 0.5]})],
        "other": [run_of({"b": [0.6]}), run_of({"b": [0.8]})],
    }
    found = over_splits(runs, num_resamples=100)
    assert found["map"] == pytest.approx((0.2 + 0.4 + 0.6 + 0.8) / 4)
    assert found["std"] == pytest.approx(np.std([0.3, 0.7], ddof=1))
    assert found["chance"] == pytest.approx(0.1)
    assert found["num_splits"] == 2


def test_one_run_keeps_its_own_interval_and_has_no_spread() -> None:
    found = over_splits({"one": [run_of({"a": [0.2], "b": [0.4]})]})
    assert found["interval"] == pytest.approx([0.29, 0.31]) and found["std"] is None


def test_a_class_shared_by_splits_is_drawn_in_all_of_them_together() -> None:
    rng = np.random.default_rng(0)
    level = dict(zip("abcdefgh", rng.uniform(0, 1, 8), strict=True))
    same = [run_of({name: [value] * 5 for name, value in level.items()}) for _ in range(4)]
    apart = [run_of({f"{name}{number}": [value] * 5 for name, value in level.items()}) for number in range(4)]
    narrow, wide = (mean_of_runs(runs, num_resamples=2000)["interval"] for runs in (apart, same))
    # Four splits with the same classes say no more than one; with classes of their own, half the width.
    assert (wide[1] - wide[0]) / (narrow[1] - narrow[0]) == pytest.approx(2.0, rel=0.2)


def test_the_protocol_gives_what_is_needed_and_only_when_asked() -> None:
    rng = np.random.default_rng(0)
    labels = [(name,) for name in "aabbccdd" * 3]
    corpus = Corpus(
        [str(row) for row in range(24)], labels, np.array(["train"] * 16 + ["test"] * 8), np.arange(24)
    )
    vectors = rng.standard_normal((24, 4)).astype(np.float32)
    groups = ClassGroups(("a", "b"), ("c", "d"))
    towers = Towers.symmetric(vectors, vectors[::-1].copy())
    plain = evaluate_method(towers, corpus, groups, num_resamples=100)["classes"]
    kept = evaluate_method(towers, corpus, groups, num_resamples=100, keep_queries=("U|U",))["classes"]
    assert "queries" not in plain["U|U"]["image_to_text"] and "queries" not in kept["S|S"]["image_to_text"]
    queries = kept["U|U"]["text_to_image"].pop("queries")
    values = [value for scores in queries.values() for value in scores]
    assert np.mean(values) == pytest.approx(kept["U|U"]["text_to_image"]["map"], abs=1e-4)
    assert {name: pytest.approx(np.mean(scores), abs=1e-4) for name, scores in queries.items()} == kept[
        "U|U"
    ]["text_to_image"]["per_class"]
    del kept["U|U"]["image_to_text"]["queries"]
    assert kept == plain
