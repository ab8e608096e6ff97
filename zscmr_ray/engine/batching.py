"""How a global batch is divided over ranks and micro batches: a pure function with its refusals.

The global batch is the contrast set of the loss, so its division must never change the result: every rank takes the
same number of rows, in micro batches of the same size whose outputs all meet in one loss (engine/step.py). What it is
not: the order of rows (data/order.py).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import ConfigError


def rows_per_rank(global_batch_size: int, num_workers: int, *, micro_batch_size: int | None = None) -> int:
    """Return the rows of a step that are a rank's. Raises ConfigError when ranks or micro batches do not come out even.

    >>> rows_per_rank(64, 2)
    32
    """
    micro = micro_batch_size or 1
    unit = num_workers * micro
    if global_batch_size % unit:
        below, above = global_batch_size // unit * unit, (global_batch_size // unit + 1) * unit
        choices = f"{below} or {above}" if below else f"{above}"
        parts = f"{num_workers} workers" + (f" x micro batch {micro} = {unit}" if micro_batch_size else "")
        raise ConfigError(
            f"train.global_batch_size={global_batch_size} is not divisible by {parts}",
            got=f"{global_batch_size} % {unit} = {global_batch_size % unit}",
            expected=f"a multiple of {unit}",
            remedy=f"use {choices}: --set train.global_batch_size={above}",
        )
    return global_batch_size // num_workers


def rank_slice(rows_G: npt.NDArray[np.int64], rank: int, num_workers: int) -> npt.NDArray[np.int64]:
    """Return a rank's contiguous share of a global step's rows; the share comes out even (`rows_per_rank`)."""
    share = len(rows_G) // num_workers
    assert share * num_workers == len(rows_G), "rows_per_rank was not asked"
    return rows_G[rank * share : (rank + 1) * share]
