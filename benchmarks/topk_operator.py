"""The perturbed top-k operator against a direct transcription of the published one, forward and backward, n = 1000.

Bars: at 16 x 500 tokens, k = 50, at least 15 times as fast (the value) and at most 1/10 of the extra memory; at 64 x 49,
k = 4 (the published rounding), at least twice as fast. 2 torch threads. Time is the median of alternating runs; memory
is the peak RSS of a fresh process that runs the operator once over that of one that does everything else.
The baseline (models/topk_released.py) draws torch.randn, then topk, sort, one_hot and mean; its backward pass is the
diagonal's einsum, so it does less work than the full Jacobian that ours computes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from contract import report
from torch import Tensor

from zscmr_ray.machine import peak_rss_bytes
from zscmr_ray.models.noise import RowNoise
from zscmr_ray.models.topk import perturbed_topk
from zscmr_ray.models.topk_released import one_hot_topk

SEED, NUM_SAMPLES, SIGMA = 0, 1000, 0.05
LARGE, SMALL = (16, 500, 50), (64, 49, 4)  # rows, tokens, k
SPEED_BAR, MEMORY_BAR, SMALL_SPEED_BAR = 15.0, 10.0, 2.0

Operator = Callable[[Tensor, int], Tensor]


def main() -> None:
    """Measure memory first, in fresh processes, then speed, and report."""
    torch.set_num_threads(2)
    extra_mb = {name: peak_mb(name) - peak_mb("nothing") for name in ("ours", "released")}
    large = alternate(LARGE, repeats=4)
    small = alternate(SMALL, repeats=15)
    speed, small_speed = (times["released"] / times["ours"] for times in (large, small))
    memory = extra_mb["released"] / max(extra_mb["ours"], 0.1)
    report(
        name="topk_operator",
        value=speed,
        bar=SPEED_BAR,
        holds=speed >= SPEED_BAR and memory >= MEMORY_BAR and small_speed >= SMALL_SPEED_BAR,
        unit="times as fast as the published operator, 16 x 500 tokens, k = 50, forward and backward",
        detail={
            "milliseconds_16x500": rounded(large),
            "milliseconds_64x49": rounded(small),
            "speed_64x49": round(small_speed, 2),
            "bar_speed_64x49": SMALL_SPEED_BAR,
            "extra_peak_megabytes_16x500": rounded(extra_mb),
            "memory_ratio_16x500": round(memory, 1),
            "bar_memory_ratio_16x500": MEMORY_BAR,
            "num_samples": NUM_SAMPLES,
            "torch_threads": torch.get_num_threads(),
        },
        seed=SEED,
    )


def ours(scores_BL: Tensor, k: int) -> Tensor:
    """Select with the project's operator."""
    num_rows, num_tokens = scores_BL.shape
    return perturbed_topk(
        scores_BL,
        lengths_B=torch.full((num_rows,), num_tokens),
        k_B=torch.full((num_rows,), k),
        noise=RowNoise(SEED, 0, torch.arange(num_rows)),
        site="benchmark",
        num_samples=NUM_SAMPLES,
        sigma=SIGMA,
    )


def released(scores_BL: Tensor, k: int) -> Tensor:
    """Select with the published operator; its noise is part of it."""
    noise_BSL = torch.randn(scores_BL.shape[0], NUM_SAMPLES, scores_BL.shape[1])
    return one_hot_topk(scores_BL, k, noise_BSL=noise_BSL, sigma=SIGMA).sum(dim=1)


def nothing(scores_BL: Tensor, k: int) -> Tensor:
    """Stand in for the operator where everything but the operator is measured."""
    return scores_BL * k


OPERATORS: dict[str, Operator] = {"ours": ours, "released": released, "nothing": nothing}


def forward_backward_ms(operator: Operator, shape: tuple[int, int, int]) -> float:
    """Run once, forward and backward, on scores as a sigmoid gives them; return milliseconds."""
    num_rows, num_tokens, k = shape
    generator = torch.Generator().manual_seed(SEED)
    scores_BL = torch.rand(num_rows, num_tokens, generator=generator).requires_grad_()
    grad_BL = torch.randn(num_rows, num_tokens, generator=generator)
    start = time.perf_counter()
    (operator(scores_BL, k) * grad_BL).sum().backward()  # type: ignore[no-untyped-call]
    return (time.perf_counter() - start) * 1e3


def alternate(shape: tuple[int, int, int], *, repeats: int) -> dict[str, float]:
    """Time both operators in turn, so that a busy moment meets both; medians in milliseconds after a warm-up."""
    times: dict[str, list[float]] = {"ours": [], "released": []}
    for _ in range(repeats + 1):
        for name, measured in times.items():
            measured.append(forward_backward_ms(OPERATORS[name], shape))
    return {name: statistics.median(measured[1:]) for name, measured in times.items()}


def peak_mb(name: str) -> float:
    """Run one operator once in a fresh process and return its peak resident memory in MB."""
    command = [sys.executable, str(Path(__file__).resolve()), name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1])


def run_and_print_peak(name: str) -> None:
    """Be that fresh process."""
    torch.set_num_threads(2)
    forward_backward_ms(OPERATORS[name], LARGE)
    print(peak_rss_bytes() / 1e6)


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Round for reading."""
    return {name: round(value, 1) for name, value in values.items()}


if __name__ == "__main__":
    run_and_print_peak(sys.argv[1]) if len(sys.argv) > 1 else main()
