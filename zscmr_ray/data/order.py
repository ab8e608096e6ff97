"""The order of training rows and the caption each row shows: pure functions of (seed, epoch, row).

Global step s takes the same rows for any number of workers, and resuming needs the step number only (DESIGN 3).
Not the noise of the models (`models/noise.py`), but keyed by the same stable `row_key`.
"""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache

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


def step_rows(*, num_rows: int, global_batch_size: int, seed: int, step: int) -> npt.NDArray[np.int64]:
    """Return the row numbers [global_batch_size] of a global step (0-based, epochs counted through).

    Every epoch is a full shuffle of its own; within it no row repeats, and the last partial batch is dropped.
    """
    epoch, place = divmod(step, steps_per_epoch(num_rows=num_rows, global_batch_size=global_batch_size))
    order = epoch_order(num_rows, seed, epoch)
    return order[place * global_batch_size : (place + 1) * global_batch_size].copy()


@lru_cache(maxsize=2)
def epoch_order(num_rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the permutation [num_rows] of an epoch (read-only; Philox keyed by seed and epoch)."""
    key = np.array([seed, epoch], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, _ORDER_STREAM], dtype=np.uint64))
    order = np.random.Generator(bits).permutation(num_rows).astype(np.int64, copy=False)
    order.flags.writeable = False
    return order


def caption_choice(seed: int, epoch: int, row: int, num_captions: int) -> int:
    """Return which of its captions, in [0, num_captions), a row shows in an epoch; `row` is its `row_key`.

    A hash and not a generator: one call costs a microsecond and depends on nothing else in the batch.
    """
    assert num_captions > 0, "a training row has at least one caption"
    message = struct.pack("<QQq", seed, epoch, row)
    value = int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")
    return (value * num_captions) >> 64
