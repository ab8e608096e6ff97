"""Which gallery rows are right for a query: by shared label, or by being of the same item.

What it is: two rules over label memberships or item numbers, which list the hits of a block of queries. What it is not: a
metric. Multi-label relevance is "any shared class" (SCIENCE 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Hits:
    """The right gallery rows of a block of queries: H pairs (row of the block, gallery column) by row; each row's number."""

    row_H: Integers
    column_H: Integers
    num_B: Integers


@dataclass(frozen=True, slots=True)
class Groups:
    """Relevance by equal codes: each query's group is a range of the gallery in the order of its codes.

    Lists the hits of a query without looking at the rest of the gallery.
    """

    order_N: Integers
    first_Q: Integers
    num_Q: Integers

    @classmethod
    def of_codes(cls, query_Q: Integers, gallery_N: Integers) -> Groups:
        """Group the gallery by its codes."""
        order_N = np.argsort(gallery_N, kind="stable")
        sorted_N = gallery_N[order_N]
        first_Q = np.searchsorted(sorted_N, query_Q, side="left")
        return cls(order_N, first_Q, np.searchsorted(sorted_N, query_Q, side="right") - first_Q)

    def hits(self, start: int, stop: int) -> Hits:
        """Return the hits of the queries [start, stop)."""
        num_B = self.num_Q[start:stop]
        row_H = np.repeat(np.arange(len(num_B)), num_B)
        nth_H = np.arange(len(row_H)) - (np.cumsum(num_B) - num_B)[row_H]
        return Hits(row_H, self.order_N[self.first_Q[start:stop][row_H] + nth_H], num_B)


@dataclass(frozen=True, slots=True)
class Relevance:
    """Which gallery rows are right for which query: those that share at least one label with it.

    `query_QC` and `gallery_NC` are boolean label memberships over the same C classes, in the same order.
    """

    query_QC: npt.NDArray[np.bool_]
    gallery_NC: npt.NDArray[np.bool_]
    _groups: Groups | None = field(init=False, repr=False, compare=False)
    _gallery_CN: npt.NDArray[np.float32] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Once, not for each block: at 100,000 x 100,000 there are thousands of them.
        both = (self.query_QC, self.gallery_NC)
        single = self.query_QC.shape[1] > 0 and all(bool((member.sum(1) == 1).all()) for member in both)
        groups = Groups.of_codes(self.query_QC.argmax(1), self.gallery_NC.argmax(1)) if single else None
        object.__setattr__(self, "_groups", groups)
        object.__setattr__(self, "_gallery_CN", None if single else self.gallery_NC.T.astype(np.float32))

    def hits(self, start: int, stop: int) -> Hits:
        """Return the hits of the queries [start, stop)."""
        if self._groups is not None:
            return self._groups.hits(start, stop)
        assert self._gallery_CN is not None
        shared_BN = self.query_QC[start:stop].astype(np.float32) @ self._gallery_CN
        row_H, column_H = np.nonzero(shared_BN > 0)
        return Hits(row_H, column_H, np.bincount(row_H, minlength=stop - start))


@dataclass(frozen=True, slots=True)
class SameItem:
    """Instance relevance: right are the gallery rows of the query's own item (all captions of one image)."""

    query_items_Q: Integers
    gallery_items_N: Integers
    _groups: Groups = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_groups", Groups.of_codes(self.query_items_Q, self.gallery_items_N))

    def hits(self, start: int, stop: int) -> Hits:
        """Return the hits of the queries [start, stop)."""
        return self._groups.hits(start, stop)

    def num_relevant(self) -> Integers:
        """Return, for each query, how many gallery rows are of its own item, [Q]."""
        return self._groups.num_Q


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
