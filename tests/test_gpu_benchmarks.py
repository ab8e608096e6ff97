"""The GPU benchmarks where there is no GPU: they say so, keep what was measured, and their every line runs when smoked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
NAMES = ("gpu_train", "gpu_embed")


def run(name: str, *arguments: str) -> dict[str, object]:
    """The object on the last line of a benchmark, seen by no GPU."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_line_runs_on_a_tiny_shape(name: str) -> None:
    path = BENCHMARKS / "results" / f"{name}.json"
    before = path.read_bytes() if path.exists() else None
    found = run(name, "--smoke")
    rows = found["smoke"]["smoke"]  # type: ignore[index, call-overload]
    for how in ("eager", "compiled"):
        measured = [rows[how]] if name == "gpu_train" else [rows[how]["images"], rows[how]["texts"]]
        assert all(one["samples_per_s"] > 0 and one["share_of_product"] > 0 for one in measured)
    assert (path.read_bytes() if path.exists() else None) == before, "a smoke test is no result"


@pytest.mark.parametrize("name", NAMES)
def test_without_a_gpu_there_is_a_reason_and_no_value(name: str, tmp_path: Path) -> None:
    """In a copy of the folder, so that nothing of the checkout is written."""
    for source in ("contract.py", "gpu_shapes.py", f"{name}.py"):
        (tmp_path / source).write_text((BENCHMARKS / source).read_text())
    done = subprocess.run(
        [sys.executable, str(tmp_path / f"{name}.py")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["value"] is None and said["holds"] is False and "no CUDA GPU" in said["detail"]["reason"]
    assert json.loads((tmp_path / "results" / f"{name}.json").read_text())["value"] is None


def test_a_measured_result_is_not_replaced_by_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import contract

    monkeypatch.setattr(contract, "RESULTS", tmp_path)
    asked = {"name": "x", "bar": 1.0, "unit": "u", "detail": {}}
    contract.report(value=2.0, holds=True, **asked)
    contract.report(value=None, holds=False, **asked)
    assert json.loads((tmp_path / "x.json").read_text())["value"] == 2.0
    contract.report(value=3.0, holds=True, **asked)
    assert json.loads((tmp_path / "x.json").read_text())["value"] == 3.0


def test_flops_are_those_of_the_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's own count of a real forward pass."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import torch
    from gpu_shapes import SMOKE
    from torch.utils.flop_counter import FlopCounterMode

    clip = SMOKE.build("cpu")
    # Torch counts no FLOPs of its fused attention on the CPU.
    clip.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        clip.vision_model(pixel_values=torch.zeros(1, 3, SMOKE.size_px, SMOKE.size_px))
    assert counter.get_total_flops() == pytest.approx(SMOKE.image_flops, rel=0.02)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        clip.text_model(input_ids=torch.ones(1, SMOKE.text.tokens, dtype=torch.long))
    assert counter.get_total_flops() == pytest.approx(SMOKE.text.forward_flops, rel=0.02)
