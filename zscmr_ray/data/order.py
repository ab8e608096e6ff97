"""The order of training rows and the caption each row shows: pure functions of (seed, epoch, row).

Global step s takes the same rows for any number of workers, and resuming needs the step number only (DESIGN 3).
Not the noise of the models (`models/noise.py`), but keyed by the same stable `row_key`.
"""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import ConfigError

_ORDER_STREAM = 0x0DE5


def row_key(item_id: str) -> int:
    """Return a stable signed 64-bit key of an item id (the first 8 bytes of its sha1).

    >>> row_key("train-00000.tar#1") == row_key("train-00000.tar#1")
    True
    """
    return int.from_bytes(hashlib.sha1(item_id.encode()).digest()[:8], "big", signed=True)


def steps_per_epoch(*, num_rows: int, global_batch_size: int) -> int:
    """Return the number of whole batches in an epoch (the last, partial one is dropped).

    Raises ConfigError when there are fewer rows than one batch takes.

    >>> steps_per_epoch(num_rows=10, global_batch_size=4)
    2
    """
    if num_rows < global_batch_size:
        raise ConfigError(
            "train.global_batch_size is larger than the training set",
            got=f"{global_batch_size} rows a step, {num_rows} rows",
            expected="at least one whole batch of rows",
            remedy=f"--set train.global_batch_size={max(2, num_rows)} or give more data",
        )
    return num_rows // global_batch_size


class Order(Protocol):
    """Which rows every global step takes; the same for any number of workers."""

    steps_per_epoch: int

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """Return the row numbers [global_batch_size] of a global step (0-based, epochs counted through)."""

    def visit(self, step: int) -> int:
        """Return what the captions of a step are drawn by; it differs between two steps that show the same row."""


class ShuffledOrder:
    """Every row once an epoch, in an order of the epoch's own."""

    def __init__(self, num_rows: int, *, global_batch_size: int, seed: int) -> None:
        self.num_rows, self.global_batch_size, self.seed = num_rows, global_batch_size, seed
        self.steps_per_epoch = steps_per_epoch(num_rows=num_rows, global_batch_size=global_batch_size)

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """See `step_rows`."""
        return step_rows(
            num_rows=self.num_rows, global_batch_size=self.global_batch_size, seed=self.seed, step=step
        )

    def visit(self, step: int) -> int:
        """Return the epoch."""
        return step // self.steps_per_epoch


def step_rows(*, num_rows: int, global_batch_size: int, seed: int, step: int) -> npt.NDArray[np.int64]:
    """Return the row numbers [global_batch_size] of a global step (0-based, epochs counted through).

    Every epoch is a full shuffle of its own; within it no row repeats, and the last partial batch is dropped.
    """
    epoch, place = divmod(step, steps_per_epoch(num_rows=num_rows, global_batch_size=global_batch_size))
    order = epoch_order(num_rows, seed, epoch)
    return order[place * global_batch_size : (place + 1) * global_batch_size].copy()


@lru_cache(maxsize=2)
def epoch_order(num_rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the permutation [num_rows] of an epoch (read-only)."""
    return permutation(num_rows, (seed, epoch), stream=_ORDER_STREAM)


def permutation(size: int, key: tuple[int, int], *, stream: int, substream: int = 0) -> npt.NDArray[np.int64]:
    """Return a permutation [size], read-only, that depends on its arguments alone (Philox, keyed)."""
    counter = np.array([0, substream, 0, stream], dtype=np.uint64)
    bits = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=counter)
    order = np.random.Generator(bits).permutation(size).astype(np.int64, copy=False)
    order.flags.writeable = False
    return order


def caption_choice(seed: int, visit: int, row: int, num_captions: int) -> int:
    """Return which of its captions, in [0, num_captions), a row shows at a visit; `row` is its `row_key`.

    A hash and not a generator: one call costs a microsecond and depends on nothing else in the batch.
    """
    assert num_captions > 0, "a training row has at least one caption"
    message = struct.pack("<QQq", seed, visit, row)
    value = int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")
    return (value * num_captions) >> 64
