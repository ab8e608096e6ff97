"""What micro batches save: peak memory and CPU time of a training step, whole share against GradCache.

Both sides train the same FGAN on the same rows with the bare loop, each in a process of its own: features in the demo's
shape (49 regions x 1280, about 15 text tokens x 384, 1000 teacher classes), one contrast set of 256 rows, encoded at once
or 32 rows at a time. Peak memory is what the process grows by from before its first step.

value = the peak of the whole share over that of micro batches (bar 2); also the same losses within 1e-5.
"""

from __future__ import annotations

import multiprocessing
import time

from contract import report
from train_overhead import Shape, make_source

from zscmr_ray.config import Config
from zscmr_ray.recipes import vary

BAR_RATIO, BAR_LOSS = 2.0, 1e-5
BATCH, MICRO, STEPS = 256, 32, 2


def train(micro_batch_size: int | None) -> dict[str, list[float]]:
    """Do some steps and return the losses, the growth in bytes and the CPU seconds of each."""
    import torch

    from zscmr_ray.engine.bare import BareEngine
    from zscmr_ray.engine.base import model_architecture
    from zscmr_ray.engine.step import AlignmentStep
    from zscmr_ray.machine import peak_rss_bytes
    from zscmr_ray.models.build import build_model

    torch.set_num_threads(1)
    config = vary(Config(), recipe="fgan", train={"global_batch_size": BATCH})
    shape = Shape(num_rows=BATCH)
    source = make_source(config, shape, rank=0, num_workers=1)
    architecture = model_architecture(
        config,
        image_channels=shape.image_channels,
        text_channels=shape.token_channels,
        num_classes=shape.classes,
    )
    step = AlignmentStep(build_model(architecture), micro_batch_size=micro_batch_size)
    engine = BareEngine(step, optim=config.optim, total_steps=STEPS)
    inputs = [source.inputs(number) for number in range(STEPS)]
    before = peak_rss_bytes()
    losses, seconds = [], []
    for one in inputs:
        began_s = time.process_time()
        losses.append(engine.update(one)["total"])
        seconds.append(time.process_time() - began_s)
    return {"losses": losses, "bytes": [float(peak_rss_bytes() - before)], "seconds": seconds}


def main() -> None:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        whole, micro = pool.map(train, [None, MICRO], chunksize=1)
    ratio = whole["bytes"][0] / micro["bytes"][0]
    difference = max(abs(one - other) for one, other in zip(whole["losses"], micro["losses"], strict=True))
    sides = {"whole": whole, "micro": micro}
    report(
        name="grad_cache",
        value=ratio,
        bar=BAR_RATIO,
        holds=ratio >= BAR_RATIO and difference <= BAR_LOSS,
        unit="peak memory of a step with the whole share over micro batches",
        detail={
            "batch": BATCH,
            "micro_batch": MICRO,
            "peak_mb": {name: round(side["bytes"][0] / 1e6) for name, side in sides.items()},
            "cpu_s_per_step": {name: round(min(side["seconds"]), 2) for name, side in sides.items()},
            "largest_loss_difference": difference,
            "loss_difference_bar": BAR_LOSS,
        },
    )


if __name__ == "__main__":
    main()
