"""A share of one side's rows, searched as if it were all of them; answers name rows of the whole side.

What it is: the bounds of shard i of n, and a search within them. What it is not: merging (remote.py) or the rows' contents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from zscmr_ray.retrieval.exact import ExactIndex, Hits
from zscmr_ray.retrieval.gallery import Gallery


def share_bounds(num_rows: int, share: tuple[int, int]) -> tuple[int, int]:
    """First row and end of share (number, of how many); shares are disjoint, cover all rows and differ by one at most.

    >>> [share_bounds(10, (i, 3)) for i in range(3)]
    [(0, 3), (3, 6), (6, 10)]
    """
    number, of = share
    return num_rows * number // of, num_rows * (number + 1) // of


class GalleryPart:
    """Rows `share_bounds` of a gallery. An exact index is cut, so that a shard touches its own rows' memory only."""

    def __init__(self, gallery: Gallery, share: tuple[int, int] = (0, 1)) -> None:
        self._gallery = gallery
        self._start, self._stop = share_bounds(gallery.num_rows, share)
        self._is_whole = self.num_rows == gallery.num_rows
        self._cut: ExactIndex | None = None
        if not self._is_whole and isinstance(gallery.index, ExactIndex):
            self._cut = ExactIndex(gallery.index.vectors_ND[self._start : self._stop])

    @property
    def num_rows(self) -> int:
        """Rows of this part."""
        return self._stop - self._start

    def mask(self, conditions: Mapping[str, Sequence[str]]) -> npt.NDArray[np.bool_] | None:
        """Which of the part's rows meet the conditions; None = there are no conditions."""
        mask = self._gallery.mask(conditions)
        return mask if mask is None or self._is_whole else mask[self._start : self._stop]

    def search(
        self, queries_QD: npt.NDArray[np.float32], *, k: int, allowed: npt.NDArray[np.bool_] | None
    ) -> Hits:
        """The k best rows of the part; `allowed` as `mask` gave it."""
        if self._is_whole:
            return self._gallery.index.search(queries_QD, k=k, allowed=allowed)
        if self._cut is not None:
            found = self._cut.search(queries_QD, k=k, allowed=allowed)
            return Hits(found.scores_QK, found.rows_QK + self._start)
        whole = np.zeros(self._gallery.num_rows, np.bool_)
        whole[self._start : self._stop] = True if allowed is None else allowed
        return self._gallery.index.search(queries_QD, k=k, allowed=whole)
