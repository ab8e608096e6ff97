"""What Ray Train and DeepSpeed cost a training step: one table against the bare torch loop, ZeRO 0-3, one and two workers.

All rows train the same model on the same batches in the same order; the bare loop in a process that has imported neither
Ray nor DeepSpeed, with as many threads as there are cores (two workers share them). A row and the bare loop take turns in
blocks of a few steps, the first of each pair alternating, so that both see the same machine; a pair's ratio is one
observation. Features are random, in the demo's shape: 49 regions x 1280, about 15 text tokens x 384, 1000 classes.

    samples_per_s, ms_per_step   median of the row's blocks     peak_mb   VmHWM of its largest worker
    overhead_ms                  median over pairs of the row's ms a step minus the bare loop's beside it
    ratio                        median over pairs of samples/s over the bare loop's
    first_step_s                 from fit() to the end of the first step     final_loss   after the same number of steps

value = ratio of stage 0 with one worker (bar 0.9); also its overhead (bar 15 ms) and first step (bar 20 s), and nothing
compiled (torch's extension and inductor folders, fresh ones here, stay empty). `--smoke`: two tiny rows, nothing written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contract import report

from zscmr_ray.cli.session import ray_session
from zscmr_ray.config import Config, RaySection
from zscmr_ray.recipes import vary

BAR_RATIO, BAR_MS, BAR_FIRST_STEP_S = 0.9, 15.0, 20.0
CORES = min(2, os.cpu_count() or 1)
# Short blocks: the machine's own speed drifts by a tenth within seconds, and only neighbours see the same.
STEPS_PER_BLOCK, WARM_UP_PAIRS, TURN_LIMIT_S = 2, 2, 300.0


@dataclass(frozen=True)
class Shape:
    """How much is trained on, and how long."""

    num_rows: int = 512
    regions: int = 49
    image_channels: int = 1280
    token_channels: int = 384
    classes: int = 1000
    first_row_pairs: int = 42
    pairs: int = 12


SMOKE = Shape(64, regions=4, image_channels=16, token_channels=16, classes=8, first_row_pairs=4, pairs=4)
TINY = {"model": {"width": 16, "latent": 8, "num_heads": 2, "num_noise_samples": 8}}


@dataclass(frozen=True)
class Row:
    """One line of the table; no ZeRO stage = the bare loop."""

    zero_stage: int | None
    num_workers: int

    @property
    def name(self) -> str:
        """Its first column."""
        return "bare" if self.zero_stage is None else f"zero {self.zero_stage}, {self.num_workers} workers"

    @property
    def threads(self) -> int:
        """Torch threads of a worker: all of them together have the cores once."""
        return max(1, CORES // self.num_workers)

    def config(self, config: Config) -> Config:
        """The configuration of this row."""
        return vary(
            config,
            recipe=config.recipe,
            train={"zero_stage": self.zero_stage or 0, "num_workers": self.num_workers},
        )


BARE = Row(None, 1)
ROWS = [Row(stage, workers) for workers in (1, 2) for stage in range(4)]
SMOKE_ROWS = [Row(0, 1), Row(2, 2)]


def make_source(config: Config, shape: Shape, *, rank: int, num_workers: int) -> Any:
    """Random features, the same in every process."""
    from zscmr_ray.data.pairs import PairFeatures
    from zscmr_ray.engine.step import StepSource

    random = np.random.default_rng(config.train.seed)
    lengths = random.integers(8, 23, shape.num_rows)
    starts = np.concatenate([[0], np.cumsum(lengths)])

    def half(*sizes: int) -> Any:
        return random.standard_normal(sizes, dtype=np.float32).astype(np.float16)

    rows = range(shape.num_rows)
    features = PairFeatures(
        ids=[f"row {row}" for row in rows],
        regions_NRD=half(shape.num_rows, shape.regions, shape.image_channels),
        token_values_TD=half(int(starts[-1]), shape.token_channels),
        token_starts_M1=starts,
        caption_starts_N1=np.arange(shape.num_rows + 1),
        captions=[[f"caption {row}"] for row in rows],
        labels=[(f"class {row % 40}",) for row in rows],
        partition=np.array(["train"] * shape.num_rows),
        prior_logits_NC=half(shape.num_rows, shape.classes),
        image_hash=[f"image {row}" for row in rows],
        thumbnails=[],
    )
    train = config.train
    return StepSource(
        features, global_batch_size=train.global_batch_size, seed=train.seed, rank=rank, num_workers=num_workers
    )  # fmt: skip


def make_engine(config: Config, shape: Shape, row: Row, total_steps: int) -> Any:
    """The same initial model under the row's engine."""
    from zscmr_ray.engine.base import model_architecture
    from zscmr_ray.engine.step import AlignmentStep
    from zscmr_ray.models.build import build_model

    sizes: dict[str, Any] = {
        "image_channels": shape.image_channels,
        "text_channels": shape.token_channels,
        "num_classes": shape.classes,
    }
    architecture = model_architecture(config, **sizes)
    step = AlignmentStep(build_model(architecture, seed=config.train.seed))
    if row.zero_stage is None:
        from zscmr_ray.engine.bare import BareEngine

        return BareEngine(step, optim=config.optim, total_steps=total_steps)
    from zscmr_ray.engine.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(step, config=config, total_steps=total_steps)


def take_turns(config: Config, shape: Shape, row: Row, pairs: int, folder: Path) -> None:
    """Do a first step, then every block of this side when it is its turn, and write down how long each took."""
    import torch

    from zscmr_ray.engine.collectives import gather_values, rank

    torch.set_num_threads(row.threads)
    source = make_source(config, shape, rank=rank(), num_workers=row.num_workers)
    engine = make_engine(config, shape, row, total_steps=1 + STEPS_PER_BLOCK * pairs)
    losses = [engine.update(source.inputs(0))["total"]]
    found: dict[str, Any] = {"first_step_at_s": time.time(), "seconds": []}
    is_bare = row.zero_stage is None
    (folder / f"ready-{'bare' if is_bare else 'row'}-{rank()}").touch()
    for pair in range(pairs):
        turn = 2 * pair + int(is_bare == bool(pair % 2))
        wait_for(folder / f"turn-{turn}")
        began_s = time.perf_counter()
        steps = range(1 + pair * STEPS_PER_BLOCK, 1 + (pair + 1) * STEPS_PER_BLOCK)
        losses.extend(engine.update(source.inputs(step))["total"] for step in steps)
        found["seconds"].append(time.perf_counter() - began_s)
        if rank() == 0:
            (folder / f"turn-{turn + 1}").touch()
    found |= {"losses": losses, "peak_mb": max(gather_values(peak_mb()))}
    if rank() == 0:
        (folder / f"{'bare' if is_bare else 'row'}.json").write_text(json.dumps(found))


def peak_mb() -> int:
    """The most memory this process has held, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def wait_for(path: Path) -> None:
    deadline_s = time.monotonic() + TURN_LIMIT_S
    while not path.exists():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{path.name} never came: the other side died")
        time.sleep(0.001)


def fit(config: Config, shape: Shape, row: Row, pairs: int, folder: Path) -> float:
    """Run a row in Ray Train workers, set up as the train stage does; returns when fit() was called."""
    from zscmr_ray.stages.train import RAY_TRAIN_ENVIRONMENT

    os.environ.update(RAY_TRAIN_ENVIRONMENT)
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        lambda settings: take_turns(**settings),
        train_loop_config={"config": config, "shape": shape, "row": row, "pairs": pairs, "folder": folder},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=row.num_workers, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=str(folder)),
    )
    began_s = time.time()
    trainer.fit()
    return began_s


def start_turns(folder: Path, num_workers: int) -> None:
    """Give the first turn once everybody has done a first step."""
    for name in ("ready-bare-0", *(f"ready-row-{rank}" for rank in range(num_workers))):
        wait_for(folder / name)
    (folder / "turn-0").touch()


def measure(config: Config, shape: Shape, row: Row, pairs: int) -> dict[str, Any]:
    """One row beside a bare loop of its own."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = (row.config(config), shape, BARE, pairs, folder)
        bare = spawn.Process(target=take_turns, args=arguments)
        bare.start()
        # The bare loop's start is over before fit() is called: it must not be in the row's first step.
        wait_for(folder / "ready-bare-0")
        referee = spawn.Process(target=start_turns, args=(folder, row.num_workers))
        referee.start()
        began_s = fit(row.config(config), shape, row, pairs, folder)
        bare.join()
        referee.join()
        ours, theirs = (json.loads((folder / f"{side}.json").read_text()) for side in ("row", "bare"))
    return summary(ours, theirs, config, began_s=began_s)


def summary(ours: dict[str, Any], bare: dict[str, Any], config: Config, *, began_s: float) -> dict[str, Any]:
    block_s, bare_s = (side["seconds"][WARM_UP_PAIRS:] for side in (ours, bare))
    rows = STEPS_PER_BLOCK * config.train.global_batch_size
    pairs = list(zip(block_s, bare_s, strict=True))
    differences = [abs(one - other) for one, other in zip(ours["losses"], bare["losses"], strict=True)]
    return {
        "samples_per_s": round(rows / statistics.median(block_s), 1),
        "bare_samples_per_s": round(rows / statistics.median(bare_s), 1),
        "ms_per_step": round(1000 * statistics.median(block_s) / STEPS_PER_BLOCK, 1),
        "overhead_ms": round(statistics.median(1000 * (a - b) / STEPS_PER_BLOCK for a, b in pairs), 2),
        "ratio": round(statistics.median(b / a for a, b in pairs), 4),
        "ratio_quartiles": [round(value, 4) for value in statistics.quantiles([b / a for a, b in pairs], n=4)],
        "peak_mb": ours["peak_mb"],
        "bare_peak_mb": bare["peak_mb"],
        "first_step_s": round(ours["first_step_at_s"] - began_s, 1),
        "steps": len(ours["losses"]),
        "final_loss": round(ours["losses"][-1], 5),
        "largest_loss_difference": max(differences),
    }  # fmt: skip


def print_table(table: dict[str, dict[str, Any]]) -> None:
    columns = ["samples_per_s", "ratio", "overhead_ms", "peak_mb", "first_step_s", "final_loss"]
    print(f"{'':<19}" + " ".join(f"{name:>18}" for name in columns))
    for name, values in table.items():
        print(f"{name:<19}" + " ".join(f"{values[column]:>18}" for column in columns), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny shapes; no result is written")
    smoke = parser.parse_args().smoke
    shape, config = (SMOKE, vary(Config(), recipe="fgan", **TINY)) if smoke else (Shape(), Config())
    with tempfile.TemporaryDirectory() as compiled:
        # Read by torch in every process started from here on.
        os.environ |= {"TORCH_EXTENSIONS_DIR": compiled, "TORCHINDUCTOR_CACHE_DIR": compiled}
        with ray_session(RaySection(num_cpus=2)):
            table = {
                row.name: measure(config, shape, row, shape.pairs if number else shape.first_row_pairs)
                for number, row in enumerate(SMOKE_ROWS if smoke else ROWS)
            }
        built = sorted(path.name for path in Path(compiled).iterdir())
    print_table(table)
    first = table[ROWS[0].name]
    detail = {"table": table, "compiled": built, "batch": config.train.global_batch_size, "shape": asdict(shape),
              "steps_per_block": STEPS_PER_BLOCK, "overhead_ms_bar": BAR_MS, "first_step_s_bar": BAR_FIRST_STEP_S,
              "threads": {row.name: row.threads for row in (BARE, *ROWS)}}  # fmt: skip
    if smoke:
        print(json.dumps({"name": "train_overhead", "smoke": detail}))
        return
    report(
        name="train_overhead",
        value=first["ratio"],
        bar=BAR_RATIO,
        holds=first["ratio"] >= BAR_RATIO
        and first["overhead_ms"] <= BAR_MS
        and first["first_step_s"] <= BAR_FIRST_STEP_S
        and not built,
        unit="samples/s of Ray Train + DeepSpeed stage 0, one worker, over the bare torch loop (median of pairs)",
        detail=detail,
        seed=config.train.seed,
    )


if __name__ == "__main__":
    main()
