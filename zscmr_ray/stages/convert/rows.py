"""Which image row and which text row make one row of the clip-retrieval layout, and reading them in that order.

An item with three captions becomes three rows with the same image vector; an item without captions, or a caption
whose item has no image, becomes one row with a zero vector in the empty place and a null in the metadata.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.errors import DataError

ABSENT = -1
RowNumbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LinedUp:
    """Row numbers of the image and the text part, ABSENT where there is none; neither ever decreases."""

    images_N: RowNumbers
    texts_N: RowNumbers


def line_up(image_ids: Sequence[str], item_ids: Sequence[str], *, part: str) -> LinedUp:
    """Pair items with their captions; `item_ids` name each caption's item, in the items' order.

    >>> found = line_up(["a", "b"], ["a", "a", "x"], part="p")
    >>> found.images_N.tolist(), found.texts_N.tolist()
    ([0, 0, 1, -1], [0, 1, -1, 2])

    Raises DataError when the captions are not in the order of their items.
    """
    images, captioned = set(image_ids), set(item_ids)
    # Plain machine integers: a list of pairs would be a hundred bytes a row.
    image_rows, text_rows = array("q"), array("q")

    def emit(image: int, texts: range) -> None:
        image_rows.extend([image] * len(texts))
        text_rows.extend(texts)

    # A last place beyond the items takes the captions without an image that are left.
    text = 0
    for image, item in enumerate([*image_ids, None]):
        if item is None or item in captioned:
            orphan = _next_known(item_ids, text, images)
            emit(ABSENT, range(text, orphan))
            text = orphan
        if item is None:
            break
        stop = text
        while stop < len(item_ids) and item_ids[stop] == item:
            stop += 1
        if item in captioned and stop == text:
            raise _out_of_order(part, item)
        # ABSENT is -1: one row without a text.
        emit(image, range(text, stop) or range(ABSENT, 0))
        text = stop
    if text < len(item_ids):
        raise _out_of_order(part, item_ids[text])
    return LinedUp(np.array(image_rows, np.int64), np.array(text_rows, np.int64))


class RowReader:
    """Rows of a parquet part by numbers that never decrease, one batch in memory; `None` is a part without rows."""

    def __init__(self, part: pq.ParquetFile | None, columns: Sequence[str], *, batch_rows: int) -> None:
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._held: pa.Table | None = None
        self._first = 0
        if part is not None:
            self._held = part.schema_arrow.empty_table().select(columns)
            self._batches = part.iter_batches(batch_rows, columns=list(columns))

    def take(self, rows_B: RowNumbers) -> pa.Table | None:
        """The rows as a table, nulls where ABSENT; None when there is no part."""
        if self._held is None:
            return None
        present = rows_B[rows_B != ABSENT]
        if present.size:
            self._advance(int(present[0]), int(present[-1]) + 1)
        return self._held.take(pa.array(rows_B - self._first, mask=rows_B == ABSENT))

    def _advance(self, start: int, stop: int) -> None:
        assert self._held is not None
        while self._first + self._held.num_rows < stop:
            more = pa.Table.from_batches([next(self._batches)])
            self._held = pa.concat_tables([self._held, more])
        self._held = self._held.slice(start - self._first).combine_chunks()
        self._first = start


def vectors_of(column: pa.ChunkedArray, *, dimension: int) -> npt.NDArray[np.float16]:
    """The vectors [B, D] of a column, zeros where it is null."""
    array = column.combine_chunks()
    vectors_BD = np.zeros((len(array), dimension), np.float16)
    # `flatten` leaves out what is null.
    present = array.is_valid().to_numpy(zero_copy_only=False)
    vectors_BD[present] = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
    return vectors_BD


def _next_known(item_ids: Sequence[str], start: int, images: set[str]) -> int:
    while start < len(item_ids) and item_ids[start] not in images:
        start += 1
    return start


def _out_of_order(part: str, item: str) -> DataError:
    return DataError(
        "a part's captions are not in the order of its items",
        got=f"{part}: item {item}",
        expected="text rows grouped by item, items as in the image part",
        remedy="make the embeddings again with `zscmr embed --overwrite`",
    )
