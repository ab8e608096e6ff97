"""Class-balanced batches: every step holds P classes with K items each, a pure function of (seed, step).

    cycle t = step // (C // P)    a shuffle of the C classes; its steps take P classes each, none twice
    class c in cycle t            the t-th portion of K of c's rows, shuffled anew when they are used up

So classes are seen equally often whatever their sizes, and a small class's rows come again sooner. It is for losses that
want same-class rows in every batch (FGCL's weak positives, same_class=positive). The order of rows whatever their classes
is data/order.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from zscmr_ray.data.order import Order, ShuffledOrder, permutation
from zscmr_ray.errors import ConfigError

Rows = npt.NDArray[np.int64]
_CLASS_STREAM, _ITEM_STREAM = 0xC1A5, 0x17E3


class ClassBalancedOrder:
    """The order of some training rows by class; a row of several classes counts as one of its first.

    `left_out` counts the rows that never come: of no class, or of a class with fewer than K rows.
    """

    def __init__(
        self,
        labels: Sequence[Sequence[str]],
        *,
        classes_per_batch: int,
        global_batch_size: int,
        seed: int,
    ) -> None:
        self.classes_per_batch, self.seed = classes_per_batch, seed
        self.items_per_class = _items_per_class(classes_per_batch, global_batch_size)
        rows: dict[str, list[int]] = {}
        for row, names in enumerate(labels):
            if names:
                rows.setdefault(names[0], []).append(row)
        kept = [name for name in sorted(rows) if len(rows[name]) >= self.items_per_class]
        self._rows: list[Rows] = [np.array(rows[name], np.int64) for name in kept]
        self._check_filled(rows)
        used = sum(map(len, self._rows))
        self.left_out = len(labels) - used
        self.steps_per_epoch = used // global_batch_size
        # What was shuffled last, by class: one call a class and pass instead of one a step.
        self._shuffled: dict[int, tuple[int, Rows]] = {}

    def rows(self, step: int) -> Rows:
        """Return the row numbers [P x K] of a global step, class after class."""
        cycle, place = divmod(step, len(self._rows) // self.classes_per_batch)
        order = permutation(len(self._rows), (self.seed, cycle), stream=_CLASS_STREAM)
        chosen = order[place * self.classes_per_batch : (place + 1) * self.classes_per_batch]
        return np.concatenate([self._items(int(number), cycle) for number in chosen])

    def visit(self, step: int) -> int:
        """Return what captions are drawn by: the step, for a row may come again in any."""
        return step

    def _items(self, number: int, cycle: int) -> Rows:
        rows, size = self._rows[number], self.items_per_class
        turn, portion = divmod(cycle, len(rows) // size)
        if self._shuffled.get(number, (-1, rows))[0] != turn:
            order = permutation(len(rows), (self.seed, turn), stream=_ITEM_STREAM, substream=number)
            self._shuffled[number] = turn, rows[order]
        return self._shuffled[number][1][portion * size : (portion + 1) * size]

    def _check_filled(self, rows: dict[str, list[int]]) -> None:
        wanted, size = self.classes_per_batch, self.items_per_class
        if len(self._rows) >= wanted:
            return
        by_size = sorted(map(len, rows.values()), reverse=True)
        largest = by_size[wanted - 1] if len(by_size) >= wanted else 0
        raise ConfigError(
            "a class-balanced batch cannot be filled",
            got=f"{len(self._rows)} of {len(rows)} classes to train on have {size} rows or more",
            expected=f"train.classes_per_batch={wanted} classes with {size} rows each",
            remedy=f"--set train.global_batch_size={wanted * largest}"
            if largest
            else f"lower train.classes_per_batch to {max(2, len(rows))} or less, or leave it unset",
        )


def make_order(
    labels: Sequence[Sequence[str]], *, global_batch_size: int, classes_per_batch: int | None, seed: int
) -> Order:
    """Return the order of rows with these labels: class-balanced, or where `classes_per_batch` is None shuffled.

    Raises ConfigError when no batch can be filled.
    """
    if classes_per_batch is None:
        return ShuffledOrder(len(labels), global_batch_size=global_batch_size, seed=seed)
    return ClassBalancedOrder(
        labels, classes_per_batch=classes_per_batch, global_batch_size=global_batch_size, seed=seed
    )


def _items_per_class(classes_per_batch: int, global_batch_size: int) -> int:
    if global_batch_size % classes_per_batch:
        below = global_batch_size // classes_per_batch * classes_per_batch
        raise ConfigError(
            f"train.global_batch_size={global_batch_size} is not divisible by {classes_per_batch} classes",
            got=f"train.classes_per_batch={classes_per_batch}",
            expected="the same number of items of every class",
            remedy=f"--set train.global_batch_size={below or classes_per_batch}",
        )
    return global_batch_size // classes_per_batch
