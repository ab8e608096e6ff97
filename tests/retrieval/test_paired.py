"""The paired class test: a naive enumeration, uniform p under the null, power, averaging over splits, refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval.paired import average_by_class, class_gains, compare_classes, sign_flip_p


def naive_p(gains: list[float]) -> float:
    """Every pattern of signs, one at a time."""
    observed = abs(sum(gains) / len(gains))
    as_large = 0
    for signs in itertools.product((1, -1), repeat=len(gains)):
        flipped = sum(sign * gain for sign, gain in zip(signs, gains, strict=True)) / len(gains)
        as_large += abs(flipped) >= observed - 1e-12
    return as_large / 2 ** len(gains)


@pytest.mark.parametrize("num_classes", [1, 2, 5, 9])
@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_exact_p_is_that_of_a_naive_enumeration(num_classes: int, shift: float) -> None:
    gains = np.random.default_rng(num_classes).standard_normal(num_classes) + shift
    assert sign_flip_p(gains) == (pytest.approx(naive_p(gains.tolist())), True)


def test_drawn_p_is_near_the_exact_one() -> None:
    gains = np.random.default_rng(4).standard_normal(13) + 0.4
    exact, is_exact = sign_flip_p(gains, num_draws=10_000)
    drawn, is_drawn = sign_flip_p(gains, num_draws=8_000)
    assert is_exact and not is_drawn
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 8_000))


@pytest.mark.parametrize("num_classes", [12, 29])
def test_under_the_null_p_is_uniform(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.1, 3.0, num_classes)  # classes need not be alike
    found = np.sort(
        [
            sign_flip_p(scale * rng.standard_normal(num_classes), num_draws=5_000, seed=run)[0]
            for run in range(600)
        ]
    )
    steps = np.arange(len(found)) / len(found)
    distance = max(np.abs(found - steps).max(), np.abs(found - steps - 1 / len(found)).max())
    assert distance < 1.63 / np.sqrt(len(found)), "Kolmogorov-Smirnov, 1%"
    assert (found < 0.05).mean() == pytest.approx(0.05, abs=0.027)


def test_a_steady_gain_is_found_and_a_single_large_one_is_not() -> None:
    steady = compare_classes(
        [{str(c): 0.30 + 0.01 * c for c in range(20)}], [{str(c): 0.25 for c in range(20)}]
    )
    assert steady.p < 1e-3 and steady.num_better == 20 and steady.interval[0] > 0
    single = compare_classes(
        [{str(c): 0.25 + (c == 0) for c in range(20)}], [{str(c): 0.25 for c in range(20)}]
    )
    assert single.mean_gain == pytest.approx(0.05) and single.p == 1.0
    assert single.interval[0] == 0.0


def test_runs_that_are_alike_give_p_one_and_direction_does_not_matter() -> None:
    scores = {"a": 0.3, "b": 0.2, "c": 0.9}
    assert compare_classes([scores], [scores]).p == 1.0
    other = {"a": 0.1, "b": 0.25, "c": 0.5}
    there, back = compare_classes([scores], [other]), compare_classes([other], [scores])
    assert there.p == back.p and there.mean_gain == -back.mean_gain


def test_gains_are_averaged_over_the_splits_that_hold_a_class() -> None:
    ours = [{"a": 0.4, "b": 0.4}, {"b": 0.6, "c": 0.5}]
    theirs = [{"a": 0.3, "b": 0.5}, {"b": 0.3, "c": 0.5}]
    assert class_gains(ours, theirs) == pytest.approx({"a": 0.1, "b": 0.1, "c": 0.0})
    assert compare_classes(ours, theirs).num_classes == 3


def test_other_classes_and_none_are_refused() -> None:
    with pytest.raises(DataError, match="only in one of them: b"):
        compare_classes([{"a": 0.1, "b": 0.2}], [{"a": 0.1}])
    with pytest.raises(DataError, match="no classes to compare"):
        compare_classes([{}], [{}])


def test_both_directions_are_averaged_where_they_have_a_value() -> None:
    condition = {
        "image_to_text": {"per_class": {"a": 0.2, "b": None}},
        "text_to_image": {"per_class": {"a": 0.4, "b": 0.5}},
    }
    assert average_by_class(condition) == pytest.approx({"a": 0.3, "b": 0.5})
