"""The no-leak rule: who tests as unseen, who trains, and that every discarded row is counted with its reason."""

from __future__ import annotations

import numpy as np

from zscmr_ray.data.no_leak import NAMES, NEITHER, NO_CLASS, SHOWS, dominant_labels
from zscmr_ray.data.splits import ClassSplit, check_no_leak, training_rows

SPLIT = ClassSplit(
    kind="explicit",
    fraction=0.5,
    seed=0,
    min_items_per_class=1,
    seen=("person", "car", "horse"),
    pseudo_unseen=("horse",),
    unseen=("dog", "cat"),
    dropped=("wine glass",),
)

# labels (dominant first), captions, partition, labels that count, why discarded
ROWS: list[tuple[list[str], list[str], str, tuple[str, ...], str | None]] = [
    (["car", "person"], ["a car"], "train", ("car",), None),
    (["dog", "person"], ["a man"], "train", ("dog",), None),
    (["dog"], ["a dog"], "test", ("dog",), None),
    (["person", "dog"], ["a man"], "train", (), SHOWS),
    (["person", "dog"], ["a man and his dog"], "test", ("person",), None),
    (["person"], ["a man", "walking his puppies"], "train", (), NAMES),
    (["person"], ["a man eats a hot dog"], "train", ("person",), None),
    (["wine glass", "person"], ["a glass"], "train", (), NEITHER),
    (["wine glass", "dog"], ["a glass"], "test", (), NEITHER),
    (["person", "wine glass"], ["a man"], "train", ("person",), None),
    ([], ["a dog"], "train", (), NO_CLASS),
    (["horse", "person"], ["a horse"], "train", ("horse",), None),
    (["person", "horse"], ["a man"], "train", ("person", "horse"), None),
    (["person"], ["a man and ponies"], "train", ("person", "horse"), None),
    (["person", "horse"], ["a man"], "val", ("person",), None),
]


def ruled() -> tuple[list[tuple[str, ...]], dict[str, int]]:
    columns = list(zip(*ROWS, strict=True))
    found = dominant_labels(columns[0], columns[1], columns[2], SPLIT)
    return found.labels, found.discarded


def test_each_row_counts_as_the_rule_says() -> None:
    labels, discarded = ruled()
    assert labels == [row[3] for row in ROWS]
    assert discarded == {NAMES: 1, SHOWS: 1, NEITHER: 2, NO_CLASS: 1}
    assert sum(discarded.values()) == sum(not row for row in labels)


def test_the_usual_training_rows_then_hold_no_unseen_class() -> None:
    labels, _ = ruled()
    in_train = np.array([row[2] == "train" for row in ROWS])
    for refit in (False, True):
        chosen = training_rows(labels, SPLIT, refit=refit) & in_train
        check_no_leak([labels[row] for row in np.flatnonzero(chosen)], SPLIT, refit=refit)
        trained = {n for n, row in enumerate(ROWS) if chosen[n]}
        for number in trained:
            assert not {"dog", "cat"} & set(ROWS[number][0])
        # What shows or names a horse waits for the refit.
        assert trained == ({0, 6, 9, 11, 12, 13} if refit else {0, 6, 9})
