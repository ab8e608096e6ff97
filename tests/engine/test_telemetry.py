"""Metrics as lines and events, and the warning of a collapse: once, with the step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zscmr_ray.engine.telemetry import Telemetry
from zscmr_ray.storage import Store


def test_lines_and_event_files(tmp_path: Path) -> None:
    with Telemetry(Store(tmp_path), lines=['{"step": 1}']) as telemetry:
        telemetry.scalars(phase="select", step=2, epoch=0.5, values={"loss/total": 1.25})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1}, {"phase": "select", "step": 2, "epoch": 0.5, "loss/total": 1.25}]
    assert len(list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))) == 1


def test_other_ranks_write_and_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Telemetry(Store(tmp_path), is_active=False) as telemetry:
        telemetry.scalars(phase="select", step=2, epoch=0.5, values={"loss/total": 1.25})
        telemetry.event("resumed", phase="select", step=2, message="going on")
        telemetry.flush()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


def test_a_collapse_is_said_once_with_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Telemetry(Store(tmp_path)) as telemetry:
        for step in range(1, 101):
            value = 0.9 if step <= 30 else 0.7302
            parts = {"fgcl": value, "collapse_value": 0.73}
            telemetry.watch_collapse(parts, phase="select", step=step)
    said = capsys.readouterr().err
    assert said.count("has collapsed") == 1
    assert "at step 50 FGCL sits at 0.7302" in said and "0.7300" in said
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["collapsed"]


def test_a_healthy_loss_and_a_model_without_regions_are_no_collapse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Telemetry(Store(tmp_path)) as telemetry:
        for step in range(60):
            telemetry.watch_collapse({"fgcl": 0.4, "collapse_value": 0.73}, phase="select", step=step)
            telemetry.watch_collapse({"fgla": 0.73}, phase="select", step=step)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("waiting, ms_per_step, times", [(0.35, 400.0, 1), (0.19, 400.0, 0), (0.9, 2.0, 0)])
def test_waiting_for_data_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], waiting: float, ms_per_step: float, times: int
) -> None:
    rates = {"speed/waiting_fraction": waiting, "speed/ms_per_step": ms_per_step}
    with Telemetry(Store(tmp_path)) as telemetry:
        for step in (10, 20):
            telemetry.watch_waiting(rates, phase="select", step=step)
    said = capsys.readouterr().err
    assert said.count("of the time is spent waiting for data") == times
    assert ("at step 10 35%" in said) == bool(times)
