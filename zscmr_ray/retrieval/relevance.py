"""Which gallery rows are right for a query: by shared label, or by being of the same item.

What it is: two rules over label memberships or item numbers, evaluated a block of queries at a time. What it is not: a
metric. Multi-label relevance is "any shared class" (SCIENCE 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Relevance:
    """Which gallery rows are right for which query: those that share at least one label with it.

    `query_QC` and `gallery_NC` are boolean label memberships over the same C classes, in the same order.
    """

    query_QC: npt.NDArray[np.bool_]
    gallery_NC: npt.NDArray[np.bool_]

    def rows(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Return relevance_BN of the queries [start, stop)."""
        block_BC = self.query_QC[start:stop]
        if bool((self.query_QC.sum(1) == 1).all() and (self.gallery_NC.sum(1) == 1).all()):
            return np.equal(block_BC.argmax(1)[:, None], self.gallery_NC.argmax(1)[None, :])
        shared_BN = block_BC.astype(np.float32) @ self.gallery_NC.T.astype(np.float32)
        return np.asarray(shared_BN > 0)


@dataclass(frozen=True, slots=True)
class SameItem:
    """Instance relevance: right are the gallery rows of the query's own item (all captions of one image)."""

    query_items_Q: npt.NDArray[np.int64]
    gallery_items_N: npt.NDArray[np.int64]

    def rows(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Return relevance_BN of the queries [start, stop)."""
        return np.equal(self.query_items_Q[start:stop, None], self.gallery_items_N[None, :])

    def num_relevant(self) -> npt.NDArray[np.int64]:
        """Return, for each query, how many gallery rows are of its own item, [Q]."""
        items, counts = np.unique(self.gallery_items_N, return_counts=True)
        if not len(items):
            return np.zeros(len(self.query_items_Q), np.int64)
        place_Q = np.minimum(np.searchsorted(items, self.query_items_Q), len(items) - 1)
        return np.where(items[place_Q] == self.query_items_Q, counts[place_Q], 0).astype(np.int64)


def membership(labels: Sequence[Sequence[str]], classes: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return the boolean label membership [N, C] of `labels`; labels outside `classes` are left out.

    >>> membership([("cat",), ("dog", "cat")], ("cat", "dog")).tolist()
    [[True, False], [True, True]]
    """
    column = {name: number for number, name in enumerate(classes)}
    member_NC = np.zeros((len(labels), len(classes)), dtype=np.bool_)
    for row, names in enumerate(labels):
        for name in names:
            if name in column:
                member_NC[row, column[name]] = True
    return member_NC


RelevanceRule = Relevance | SameItem
