"""What Ray Train and DeepSpeed cost a training step: steady-state samples/s against the bare torch loop.

Both sides train the same model on the same rows in the same order with the same number of threads: one in a Ray Train
worker under DeepSpeed (stage 0), one in a process that has imported neither. They take turns in blocks of a few steps,
the first of each pair alternating, so that both see the same machine; a pair's ratio is one observation.
Features are random, in the demo's shape: 49 regions x 1280, about 15 text tokens x 384, 1000 teacher classes.

value = median samples/s of Ray + DeepSpeed over bare (bar 0.85); also at most 15 ms more a step.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from contract import report

from zscmr_ray.cli.session import ray_session
from zscmr_ray.config import Config, RaySection

BAR_RATIO, BAR_MS = 0.85, 15.0
NUM_ROWS, REGIONS, IMAGE_CHANNELS, TOKEN_CHANNELS, CLASSES = 512, 49, 1280, 384, 1000
STEPS_PER_BLOCK, PAIRS, WARM_UP_PAIRS = 4, 16, 2
SIDES = ("bare", "ray")
THREADS = min(2, os.cpu_count() or 1)


def make_source(config: Config) -> Any:
    """Random features of the demo's shape, the same in both processes."""
    from zscmr_ray.data.pairs import PairFeatures
    from zscmr_ray.engine.step import StepSource

    random = np.random.default_rng(config.train.seed)
    lengths = random.integers(8, 23, NUM_ROWS)
    starts = np.concatenate([[0], np.cumsum(lengths)])

    def half(*shape: int) -> Any:
        return random.standard_normal(shape, dtype=np.float32).astype(np.float16)

    features = PairFeatures(
        ids=[f"row {row}" for row in range(NUM_ROWS)],
        regions_NRD=half(NUM_ROWS, REGIONS, IMAGE_CHANNELS),
        token_values_TD=half(int(starts[-1]), TOKEN_CHANNELS),
        token_starts_M1=starts,
        caption_starts_N1=np.arange(NUM_ROWS + 1),
        captions=[[f"caption {row}"] for row in range(NUM_ROWS)],
        labels=[(f"class {row % 40}",) for row in range(NUM_ROWS)],
        partition=np.array(["train"] * NUM_ROWS),
        prior_logits_NC=half(NUM_ROWS, CLASSES),
        image_hash=[f"image {row}" for row in range(NUM_ROWS)],
        thumbnails=[],
    )
    return StepSource(features, global_batch_size=config.train.global_batch_size, seed=config.train.seed)


def make_engine(config: Config, side: str) -> Any:
    """The same initial model under the side's engine."""
    from zscmr_ray.engine.base import model_architecture
    from zscmr_ray.engine.step import AlignmentStep
    from zscmr_ray.models.build import build_model

    shape: dict[str, Any] = {
        "image_channels": IMAGE_CHANNELS,
        "text_channels": TOKEN_CHANNELS,
        "num_classes": CLASSES,
    }
    step = AlignmentStep(build_model(model_architecture(config, **shape), seed=config.train.seed))
    total = STEPS_PER_BLOCK * PAIRS
    if side == "bare":
        from zscmr_ray.engine.bare import BareEngine

        return BareEngine(step, optim=config.optim, total_steps=total)
    from zscmr_ray.engine.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(step, config=config, total_steps=total)


def take_turns(config: Config, side: str, folder: str) -> None:
    """Do every block of this side when it is its turn, and write down how long each took."""
    import torch

    torch.set_num_threads(THREADS)
    source, engine = make_source(config), make_engine(config, side)
    seconds: list[float] = []
    losses: list[float] = []
    for pair in range(PAIRS):
        first = SIDES.index(side) == pair % 2
        turn = 2 * pair + (0 if first else 1)
        wait_for(Path(folder) / f"turn-{turn}")
        began_s = time.perf_counter()
        steps = range(pair * STEPS_PER_BLOCK, (pair + 1) * STEPS_PER_BLOCK)
        losses.extend(engine.update(source.inputs(step))["total"] for step in steps)
        seconds.append(time.perf_counter() - began_s)
        (Path(folder) / f"turn-{turn + 1}").touch()
    text = json.dumps({"seconds": seconds, "losses": losses})
    (Path(folder) / f"{side}.tmp").write_text(text)
    (Path(folder) / f"{side}.tmp").rename(Path(folder) / f"{side}.json")


def wait_for(path: Path, *, timeout_s: float = 300.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{path.name} never came: the other side died")
        time.sleep(0.001)


def ray_side(config: Config, folder: str) -> None:
    """Run this side in a Ray Train worker, set up as the train stage does."""
    from zscmr_ray.stages.train import RAY_TRAIN_ENVIRONMENT

    os.environ.update(RAY_TRAIN_ENVIRONMENT)
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    def loop(settings: dict[str, Any]) -> None:
        take_turns(settings["config"], "ray", settings["folder"])

    TorchTrainer(
        loop,
        train_loop_config={"config": config, "folder": folder},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=folder),
    ).fit()


def run_both(config: Config, ray_side: Callable[[Config, str], None]) -> dict[str, dict[str, list[float]]]:
    with tempfile.TemporaryDirectory() as folder, ray_session(RaySection()):
        bare = multiprocessing.get_context("spawn").Process(target=take_turns, args=(config, "bare", folder))
        bare.start()
        (Path(folder) / "turn-0").touch()
        ray_side(config, folder)
        bare.join()
        return {side: json.loads((Path(folder) / f"{side}.json").read_text()) for side in SIDES}


def main() -> None:
    config = Config()
    results = run_both(config, ray_side)
    block_s = {side: results[side]["seconds"][WARM_UP_PAIRS:] for side in SIDES}
    ratios = [bare / ours for bare, ours in zip(block_s["bare"], block_s["ray"], strict=True)]
    extra_ms = [
        1000 * (ours - bare) / STEPS_PER_BLOCK
        for bare, ours in zip(block_s["bare"], block_s["ray"], strict=True)
    ]
    ratio, overhead_ms = statistics.median(ratios), statistics.median(extra_ms)
    rows = STEPS_PER_BLOCK * config.train.global_batch_size
    quartiles = statistics.quantiles(ratios, n=4)
    report(
        name="train_overhead",
        value=ratio,
        bar=BAR_RATIO,
        holds=ratio >= BAR_RATIO and overhead_ms <= BAR_MS,
        unit="samples/s of Ray Train + DeepSpeed over the bare torch loop (median of pairs)",
        detail={
            "overhead_ms_per_step": round(overhead_ms, 2),
            "overhead_ms_bar": BAR_MS,
            "ratio_quartiles": [round(value, 4) for value in quartiles],
            "pairs": len(ratios),
            "steps_per_block": STEPS_PER_BLOCK,
            "batch": config.train.global_batch_size,
            "threads": THREADS,
            "zero_stage": 0,
            "samples_per_s": {side: round(rows / statistics.median(block_s[side]), 1) for side in SIDES},
            "ms_per_step": {
                side: round(1000 * statistics.median(block_s[side]) / STEPS_PER_BLOCK, 1) for side in SIDES
            },
            "largest_loss_difference": max(
                abs(one - other)
                for one, other in zip(results["bare"]["losses"], results["ray"]["losses"], strict=True)
            ),
        },
        seed=config.train.seed,
    )


if __name__ == "__main__":
    main()
