"""The learning rate against its formula."""

from __future__ import annotations

import math

import pytest

from zscmr_ray.engine.schedule import learning_rate


def rate(step: int, warmup: int = 10, total: int = 100) -> float:
    return learning_rate(step, peak=2.0, warmup_steps=warmup, total_steps=total)


def test_warm_up_is_linear_and_never_zero() -> None:
    assert [rate(step) for step in range(10)] == pytest.approx([0.2 * (step + 1) for step in range(10)])


def test_cosine_after_the_warm_up() -> None:
    assert rate(10) == pytest.approx(2.0)
    assert rate(55) == pytest.approx(1.0)
    assert rate(99) == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert rate(100) == rate(150) == pytest.approx(0.0)


def test_no_warm_up_and_a_warm_up_longer_than_the_run() -> None:
    assert rate(0, warmup=0) == pytest.approx(2.0)
    assert rate(5, warmup=10, total=8) == pytest.approx(1.2)
