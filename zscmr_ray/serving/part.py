"""A share of one side's rows, searched as if it were all of them; answers name rows of the whole side.

What it is: the bounds of shard i of n, and a search within them. What it is not: merging (remote.py) or the rows' contents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from zscmr_ray.retrieval.exact import Hits
from zscmr_ray.retrieval.side_index import SideIndex


def share_bounds(num_rows: int, share: tuple[int, int]) -> tuple[int, int]:
    """First row and end of share (number, of how many); shares are disjoint, cover all rows and differ by one at most.

    >>> [share_bounds(10, (i, 3)) for i in range(3)]
    [(0, 3), (3, 6), (6, 10)]
    """
    number, of = share
    return num_rows * number // of, num_rows * (number + 1) // of


class GalleryPart:
    """Rows `share_bounds` of a side. Flat segments are cut, so that a shard touches its own rows' memory only."""

    def __init__(self, gallery: SideIndex, share: tuple[int, int] = (0, 1)) -> None:
        self._gallery = gallery
        self._start, self._stop = share_bounds(gallery.num_stored, share)
        gallery.cut(self._start, self._stop)

    @property
    def num_rows(self) -> int:
        """Rows of this part that can be found."""
        return self._gallery.num_within(self._start, self._stop)

    def mask(self, conditions: Mapping[str, Sequence[str]]) -> npt.NDArray[np.bool_] | None:
        """Which of the part's rows meet the conditions and are not deleted; None = all of them."""
        mask = self._gallery.mask(conditions)
        return mask if mask is None else mask[self._start : self._stop]

    def search(
        self,
        queries_QD: npt.NDArray[np.float32],
        *,
        k: int,
        allowed: npt.NDArray[np.bool_] | None,
        asked: Sequence[str | None] = (),
        label_weights: Sequence[float] = (),
    ) -> Hits:
        """The k best rows of the part; `allowed` as `mask` gave it, the rest as `SideIndex.search`."""
        whole = None
        if allowed is not None:
            whole = np.zeros(self._gallery.num_stored, np.bool_)
            whole[self._start : self._stop] = allowed
        return self._gallery.search(
            queries_QD,
            k=k,
            allowed=whole,
            within=(self._start, self._stop),
            asked=asked,
            label_weights=label_weights,
        )
