"""The learning rate as a pure function of the step: linear warm-up, then a cosine to zero.

A function and not a scheduler object: resuming needs the step number only, and every engine sets the same value.
"""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Return the rate of global step `step` (from 0): peak (step + 1) / warmup, then peak (1 + cos(pi t)) / 2.

    t runs from 0 after the warm-up to 1 at `total_steps`. SCIENCE 2: cosine with 10 warm-up steps.

    >>> [round(learning_rate(s, peak=1.0, warmup_steps=2, total_steps=6), 3) for s in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
