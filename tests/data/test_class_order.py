"""Class-balanced batches: P classes x K items by step number alone, every class equally often; what cannot be filled."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from zscmr_ray.data.class_order import ClassBalancedOrder, make_order
from zscmr_ray.data.order import ShuffledOrder
from zscmr_ray.errors import ConfigError

SIZES = {"a": 4, "b": 9, "c": 30, "d": 5, "e": 3, "f": 12}
LABELS = [(name,) for name, size in SIZES.items() for _ in range(size)]


def make(seed: int = 1, labels: object = LABELS) -> ClassBalancedOrder:
    return ClassBalancedOrder(labels, classes_per_batch=2, global_batch_size=8, seed=seed)  # type: ignore[arg-type]


def test_every_step_holds_p_classes_of_k_items() -> None:
    order = make()
    for step in range(40):
        rows = order.rows(step)
        assert len(set(rows.tolist())) == 8
        assert sorted(Counter(LABELS[row][0] for row in rows).values()) == [4, 4]


def test_a_step_depends_on_nothing_but_seed_and_number() -> None:
    late, other = make().rows(33), make()
    for step in reversed(range(40)):
        other.rows(step)
    assert np.array_equal(late, other.rows(33))
    assert not np.array_equal(late, make(seed=2).rows(33))


def test_the_order_is_pinned() -> None:
    """Resuming a run of an earlier version takes the same rows: these numbers must never change."""
    assert make(seed=0).rows(5).tolist() == [62, 54, 61, 53, 45, 47, 44, 46]


def test_classes_come_equally_often_and_the_rows_of_a_class_too() -> None:
    order = make()
    seen = Counter(row for step in range(400) for row in order.rows(step).tolist())
    by_class: dict[str, int] = {}
    for row, count in seen.items():
        by_class[LABELS[row][0]] = by_class.get(LABELS[row][0], 0) + count
    assert set(by_class) == {"a", "b", "c", "d", "f"}
    assert max(by_class.values()) < 1.15 * min(by_class.values())
    of_c = [seen[row] for row in range(13, 43)]
    assert max(of_c) < 2 * min(of_c)


def test_small_classes_are_left_out_and_counted() -> None:
    order = make(labels=[*LABELS, ()])
    assert order.left_out == 3 + 1 and order.items_per_class == 4
    assert order.steps_per_epoch == 60 // 8
    assert order.visit(7) == 7


def test_a_row_of_several_classes_counts_as_its_first() -> None:
    order = make(labels=[("a", "b")] * 4 + [("b", "a")] * 4)
    assert sorted(order.rows(0).tolist()) == list(range(8)) and order.left_out == 0


@pytest.mark.parametrize(
    "classes, batch, said",
    [
        (3, 8, "not divisible by 3 classes.*--set train.global_batch_size=6"),
        (4, 64, "1 of 6 classes to train on have 16 rows or more.*--set train.global_batch_size=20"),
        (8, 16, "6 of 6 classes.*lower train.classes_per_batch to 6 or less"),
    ],
)
def test_what_cannot_be_filled_names_the_remedy(classes: int, batch: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_order(LABELS, global_batch_size=batch, classes_per_batch=classes, seed=0)


def test_without_classes_per_batch_rows_are_shuffled() -> None:
    order = make_order(LABELS, global_batch_size=8, classes_per_batch=None, seed=0)
    assert isinstance(order, ShuffledOrder) and order.visit(order.steps_per_epoch) == 1
    with pytest.raises(ConfigError, match="larger than the training set"):
        make_order(LABELS, global_batch_size=800, classes_per_batch=None, seed=0)
