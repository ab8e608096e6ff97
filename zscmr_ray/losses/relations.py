"""Who is what to whom in a batch: true pairs, same-class non-pairs (weak) and negatives (SCIENCE 2, "Same-class rows").

Rows with an identical caption or an identical image are true pairs of each other, never weak positives or negatives.
Several labels a row: weak = shares any label, negative = shares none. No labels: every row is its own class.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Relations:
    """Three symmetric boolean matrices [B, B] that cover every pair of rows exactly once."""

    negative_BB: Tensor
    weak_BB: Tensor
    positive_BB: Tensor

    def to(self, device: torch.device | str) -> Relations:
        """The same relations on another device."""
        return Relations(self.negative_BB.to(device), self.weak_BB.to(device), self.positive_BB.to(device))


def make_relations(
    labels: Sequence[Sequence[str]] | None,
    image_keys: Sequence[Hashable] | None = None,
    caption_keys: Sequence[Hashable] | None = None,
    *,
    num_rows: int | None = None,
    device: torch.device | str = "cpu",
) -> Relations:
    """Relate the rows of one global batch to each other.

    `labels`: the classes of each row (any number, also none); None where the corpus has none. The keys name contents
    (hash of the image bytes, the caption text): rows with equal keys are true pairs. `num_rows` is needed only where
    all three are None.

    >>> relations = make_relations([("cat",), ("cat",), ("dog",)], caption_keys=["a", "b", "a"])
    >>> relations.weak_BB[0].tolist(), relations.negative_BB[1].tolist(), relations.positive_BB[0].tolist()
    ([False, True, False], [False, False, True], [True, False, True])
    """
    given = [len(column) for column in (labels, image_keys, caption_keys) if column is not None]
    size = num_rows if num_rows is not None else given[0]
    assert all(length == size for length in given), f"columns of different lengths: {given}, rows: {size}"
    positive_BB = torch.eye(size, dtype=torch.bool)
    for keys in (image_keys, caption_keys):
        if keys is not None:
            ids_B = _number(keys)
            positive_BB |= ids_B[:, None] == ids_B
    same_BB = torch.zeros(size, size, dtype=torch.bool) if labels is None else _shares_a_label(labels)
    return Relations(
        negative_BB=~same_BB & ~positive_BB, weak_BB=same_BB & ~positive_BB, positive_BB=positive_BB
    ).to(device)


def _number(keys: Sequence[Hashable]) -> Tensor:
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], dtype=torch.int64)


def _shares_a_label(labels: Sequence[Sequence[str]]) -> Tensor:
    numbers: dict[str, int] = {}
    cells = [
        (row, numbers.setdefault(label, len(numbers))) for row, names in enumerate(labels) for label in names
    ]
    has_BC = torch.zeros(len(labels), max(1, len(numbers)))
    if cells:
        rows, columns = zip(*cells, strict=True)
        has_BC[list(rows), list(columns)] = 1.0
    return (has_BC @ has_BC.T) > 0
