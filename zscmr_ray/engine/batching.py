"""How a global batch is divided over ranks: a pure function with its refusals.

The global batch is the contrast set of the loss, so its division must never change the result: every rank takes the
same number of rows, in one forward pass. What it is not: the order of rows (data/order.py).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import ConfigError


def rows_per_rank(global_batch_size: int, num_workers: int, *, micro_batch_size: int | None = None) -> int:
    """Return the rows a rank encodes in a step. Raises ConfigError when they do not come out even.

    A micro batch smaller than the rank's share would be plain gradient accumulation, which shrinks the contrast set.

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
    share = global_batch_size // num_workers
    if micro_batch_size is not None and micro_batch_size != share:
        raise ConfigError(
            "plain gradient accumulation under a contrastive loss: each micro batch would see only itself",
            got=f"train.micro_batch_size={micro_batch_size}, {share} rows a worker",
            expected=f"one micro batch a step: {share} rows",
            remedy="leave train.micro_batch_size unset, raise train.num_workers, or lower train.global_batch_size",
        )
    return share


def rank_slice(rows_G: npt.NDArray[np.int64], rank: int, num_workers: int) -> npt.NDArray[np.int64]:
    """Return a rank's contiguous share of a global step's rows; the share comes out even (`rows_per_rank`)."""
    share = len(rows_G) // num_workers
    assert share * num_workers == len(rows_G), "rows_per_rank was not asked"
    return rows_G[rank * share : (rank + 1) * share]
