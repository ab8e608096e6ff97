"""A side of an index, image or text: its segments as one gallery, without the rows that were deleted.

Rows are numbered through the segments in their order. A search asks every segment and merges by score, then id, so that
the answers are those of one segment with the same rows (exactly so where the segments are flat). What it is not: the
files (gallery.py), or who decides on segments and deletions (stages/index).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval.exact import ExactIndex, FloatArray, Hits
from zscmr_ray.retrieval.gallery import Gallery
from zscmr_ray.retrieval.region_store import joined_regions

Mask = npt.NDArray[np.bool_]


class SideIndex:
    """Segments, oldest first, and the ids deleted from each. Raises DataError for a deleted id that its segment lacks."""

    def __init__(self, segments: Sequence[Gallery], deleted: Sequence[Collection[str]] = ()) -> None:
        self.segments = list(segments)
        self._starts = np.cumsum([0, *(segment.num_rows for segment in self.segments)])
        self._cuts: dict[tuple[int, int, int], ExactIndex] = {}
        self.regions = joined_regions([segment.regions for segment in self.segments], self._starts)
        self._alive: Mask | None = None
        if any(deleted):
            self._alive = np.ones(int(self._starts[-1]), np.bool_)
            for start, segment, ids in zip(self._starts, self.segments, deleted, strict=False):
                self._alive[[int(start) + _deleted_row(segment, row_id) for row_id in ids]] = False

    @property
    def num_rows(self) -> int:
        """Rows that can be found: of all segments, without the deleted ones."""
        return self.num_within(0, self.num_stored)

    @property
    def num_stored(self) -> int:
        """Rows of all segments, deleted ones too: row numbers are below it."""
        return int(self._starts[-1])

    def num_within(self, start: int, stop: int) -> int:
        """Rows of a range that can be found."""
        return stop - start if self._alive is None else int(self._alive[start:stop].sum())

    def cut(self, start: int, stop: int) -> None:
        """Prepare searches within a range of rows: flat segments partly in it are cut, so that no other row is read."""
        for number, segment in enumerate(self.segments):
            first, last = self._overlap(number, start, stop)
            if first < last and last - first < segment.num_rows and segment.lists is None:
                vectors_ND = segment.index.vectors_ND[first:last]
                self._cuts[number, first, last] = ExactIndex(vectors_ND)

    def alive(self, number: int) -> Mask:
        """Which rows of a segment are not deleted."""
        start, stop = self._starts[number : number + 2]
        return np.ones(stop - start, np.bool_) if self._alive is None else self._alive[start:stop]

    def row_of(self, row_id: str) -> int | None:
        """Return the row of an id, or None when this side has no such id or it was deleted."""
        for start, segment in zip(self._starts, self.segments, strict=False):
            row = segment.row_of(row_id)
            if row is not None and (self._alive is None or self._alive[start + row]):
                return int(start) + row
        return None

    def id_of(self, row: int) -> str:
        """The id of a row."""
        segment, local = self._place(row)
        return segment.id_of(local)

    def item_id_of(self, row: int) -> str:
        """The id of the item a row belongs to: itself for an image, the captioned item for a text."""
        segment, local = self._place(row)
        return segment.item_id_of(local)

    def labels_of(self, row: int) -> tuple[str, ...]:
        """The classes of a row."""
        segment, local = self._place(row)
        return segment.labels_of(local)

    def captions_of(self, row: int) -> tuple[str, ...]:
        """The captions of a row's item in their own order; a text row's single caption."""
        segment, local = self._place(row)
        return segment.captions_of(local)

    def has_thumbnail(self, row: int) -> bool:
        """Whether a row has a thumbnail."""
        segment, local = self._place(row)
        return segment.has_thumbnail(local)

    def thumbnail_of(self, row: int) -> bytes | None:
        """The JPEG thumbnail of a row, or None where none was kept."""
        segment, local = self._place(row)
        return segment.thumbnail_of(local)

    def vector_of(self, row: int) -> FloatArray:
        """The stored vector of a row: unweighted unit blocks [D]."""
        segment, local = self._place(row)
        return segment.vector_of(local)

    def mask(self, conditions: Mapping[str, Sequence[str]]) -> Mask | None:
        """Return which rows meet every condition and are not deleted; None when that is all of them.

        Raises DataError for a column that cannot be filtered on.
        """
        if not conditions:
            return self._alive
        masks = [segment.mask(conditions) for segment in self.segments]
        allowed = np.concatenate([mask for mask in masks if mask is not None])
        return allowed if self._alive is None else allowed & self._alive

    def search(
        self,
        queries_QD: FloatArray,
        *,
        k: int,
        allowed: Mask | None = None,
        within: tuple[int, int] | None = None,
        asked: Sequence[str | None] = (),
        label_weights: Sequence[float] = (),
    ) -> Hits:
        """Return the k best rows of each query of those in `allowed` (from `mask`), and only of rows `within` a range.

        `asked` and `label_weights` as for `Gallery.search`; a range is faster when it was `cut` before.
        Raises DataError for what is no query of this index and for a k larger than the rows allowed.
        """
        allowed = self._alive if allowed is None else allowed
        start, stop = within or (0, self.num_stored)
        available = stop - start if allowed is None else int(allowed[start:stop].sum())
        if k > available:
            raise DataError(
                "k is larger than the gallery",
                got=f"k={k}",
                expected=f"at most {available}",
                remedy=f"ask for k <= {available}" if available else "drop the filter",
            )
        parts = []
        for number, segment in enumerate(self.segments):
            first, last = self._overlap(number, start, stop)
            offset = int(self._starts[number])
            mask = None if allowed is None else allowed[offset + first : offset + last]
            num = min(k, last - first if mask is None else int(mask.sum()))
            if num <= 0:
                continue
            cut = self._cuts.get((number, first, last))
            if cut is not None:
                found = cut.search(queries_QD, k=num, allowed=mask)
                offset += first
            else:
                mask = _widened(mask, first, last, segment.num_rows)
                found = segment.search(
                    queries_QD, k=num, allowed=mask, asked=asked, label_weights=label_weights
                )
            parts.append(Hits(found.scores_QK, found.rows_QK + offset))
        return parts[0] if len(parts) == 1 else self._merged(parts, k=k)

    def _merged(self, parts: Sequence[Hits], *, k: int) -> Hits:
        scores_QM = np.concatenate([part.scores_QK for part in parts], axis=1)
        rows_QM = np.concatenate([part.rows_QK for part in parts], axis=1)
        rows_QK = np.empty((len(rows_QM), k), np.int64)
        scores_QK = np.empty((len(rows_QM), k), np.float64)
        for q, (scores, rows) in enumerate(zip(scores_QM.tolist(), rows_QM.tolist(), strict=True)):
            best = sorted((-score, self.id_of(row), row) for score, row in zip(scores, rows, strict=True))[:k]
            scores_QK[q], rows_QK[q] = [-one[0] for one in best], [one[2] for one in best]
        return Hits(scores_QK, rows_QK)

    def _overlap(self, number: int, start: int, stop: int) -> tuple[int, int]:
        """The rows of a segment that lie in a range of all rows, by their numbers in the segment."""
        first, last = (int(place) for place in self._starts[number : number + 2])
        return max(start, first) - first, max(start, first, min(stop, last)) - first

    def _place(self, row: int) -> tuple[Gallery, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.segments[number], row - int(self._starts[number])


def _widened(mask: Mask | None, first: int, last: int, num_rows: int) -> Mask | None:
    """A mask of rows [first, last) as one of all rows; None when that is all of them."""
    if last - first == num_rows:
        return mask
    whole = np.zeros(num_rows, np.bool_)
    whole[first:last] = True if mask is None else mask
    return whole


def _deleted_row(segment: Gallery, row_id: str) -> int:
    row = segment.row_of(row_id)
    if row is None:
        raise DataError(
            "a deleted id is not in the segment it was deleted from",
            got=row_id,
            remedy="run `zscmr index --overwrite`",
        )
    return row
