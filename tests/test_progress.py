"""Plain progress lines where the output is no terminal."""

from __future__ import annotations

import io

import pytest

from zscmr_ray import progress
from zscmr_ray.progress import Progress


def test_plain_lines_have_rate_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)
    out = io.StringIO()
    with Progress("train", total=4, unit="steps", stream=out) as bar:
        bar.advance(2, note="loss 0.5")
    lines = out.getvalue().splitlines()
    assert "2/4 steps" in lines[0] and "left" in lines[0] and "loss 0.5" in lines[0]
    assert "done in" in lines[-1]


def test_a_failing_stage_says_stopped() -> None:
    out = io.StringIO()
    with pytest.raises(ValueError, match="x"), Progress("embed", total=None, unit="rows", stream=out):
        raise ValueError("x")
    assert "stopped in" in out.getvalue()
