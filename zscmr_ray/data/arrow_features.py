"""Feature columns of a pairs table as numpy arrays, without a Python loop and, where the table allows it, without a copy.

What is done with them, and their axes: data/pairs.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zscmr_ray.errors import DataError

Rows = npt.NDArray[np.int64]
Half = npt.NDArray[np.float16]


def regions_column(table: pa.Table, num_regions: int) -> Half:
    """Return `regions` as [N, R, D]; [N, 0, 0] for a corpus without images. Raises DataError for another shape."""
    if num_regions == 0:
        return np.empty((len(table), 0, 0), np.float16)
    column = whole_column(table, "regions", "image features")
    width = column.type.byte_width
    if width % (2 * num_regions):
        raise DataError(
            "cached image features of another shape",
            got=f"{width} bytes an item",
            expected=f"a multiple of {num_regions} regions x 2 bytes",
            remedy="rerun `zscmr preprocess --overwrite`",
        )
    start = column.offset * width
    values = np.frombuffer(values_buffer(column), np.uint8)[start : start + len(column) * width]
    return values.view("<f2").reshape(len(column), num_regions, width // (2 * num_regions))


def priors_column(table: pa.Table) -> Half | None:
    """Return `prior_logits` as [N, C]; None where there was no teacher."""
    if pa.types.is_null(table.schema.field("prior_logits").type):
        return None
    column = whole_column(table, "prior_logits", "teacher logits")
    values: Half = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), column.type.list_size)


def whole_column(table: pa.Table, name: str, what: str) -> pa.Array:
    """Return a column as one array. Raises DataError, naming `what`, when a row lacks it."""
    column = table.column(name)
    if pa.types.is_null(column.type) or column.null_count:
        raise DataError(
            f"pairs without cached {what}",
            got=f"{len(table) if pa.types.is_null(column.type) else column.null_count} rows without `{name}`",
            expected="every row with cached features",
            remedy="rerun `zscmr preprocess --overwrite`",
        )
    return column.chunk(0) if column.num_chunks == 1 else _combined(column)


def _combined(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 0:
        return pa.array([], column.type)
    return pa.concat_arrays(column.chunks)


def values_buffer(array: pa.Array) -> pa.Buffer:
    """Return the buffer of an array's values, empty where it has none."""
    buffer = array.buffers()[-1]
    return pa.py_buffer(b"") if buffer is None else buffer


def list_offsets(array: pa.Array) -> Rows:
    """Return the len + 1 offsets of a list or binary array (32-bit on disk), as int64."""
    if not len(array):
        return np.zeros(1, np.int64)
    raw = np.frombuffer(array.buffers()[1], np.int32)
    return raw[array.offset : array.offset + len(array) + 1].astype(np.int64)
