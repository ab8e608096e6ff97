"""Arrays of feature rows that live in a file of this process instead of its memory, and are read when indexed.

For pairs larger than memory: training takes rows in an order that jumps, which a local disk answers and an object store
does not. The rows and their order are those of arrays in memory, so that nothing but speed depends on where they are.
The file has no name (in TMPDIR) and is gone with the process; the operating system caches what it can. Not a memory map:
an error of the disk is an exception here, and a signal that ends the process there.
"""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import StorageError

Half = npt.NDArray[np.float16]
Rows = npt.NDArray[np.int64]


class RowFile:
    """An unnamed file that rows of one shape are appended to; it lives as long as any of its rows."""

    def __init__(self, row_shape: tuple[int, ...]) -> None:
        self.row_shape, self.row_bytes = row_shape, 2 * int(np.prod(row_shape))
        self._descriptor, path = tempfile.mkstemp(prefix="zscmr-features-")
        Path(path).unlink()
        weakref.finalize(self, os.close, self._descriptor)
        self._num_rows = 0

    def append(self, values: Half) -> FileRows:
        """Write rows and return them. Raises StorageError for a full disk."""
        assert values.shape[1:] == self.row_shape, (values.shape, self.row_shape)
        try:
            with open(self._descriptor, "wb", closefd=False) as file:
                file.write(np.ascontiguousarray(values).data)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise
            raise StorageError(
                "no room for the cached features that do not fit in memory",
                got=f"{error.strerror} in {tempfile.gettempdir()} after {self._num_rows} rows",
                expected="a local disk with room for the features of all training rows, once a worker",
                remedy="set TMPDIR to a larger disk, raise train.feature_memory_bytes, or --set model.region_grid=4",
            ) from error
        places_N = np.arange(self._num_rows, self._num_rows + len(values))
        self._num_rows += len(values)
        return FileRows(self, places_N)

    def read_into(self, buffer: memoryview, place: int) -> None:
        """Fill a buffer with the rows from `place` on. Raises StorageError where the file ends early."""
        done = 0
        while done < len(buffer):
            size = os.preadv(self._descriptor, [buffer[done:]], place * self.row_bytes + done)
            if size == 0:
                raise StorageError("a temporary file of features ends early", got=f"row {place}")
            done += size


class FileRows:
    """Read-only float16 rows [N, ...]: `places_N` says which rows of the file. Safe to read from several threads."""

    def __init__(self, file: RowFile, places_N: Rows) -> None:
        self.file, self.places_N = file, places_N

    @property
    def shape(self) -> tuple[int, ...]:
        """As an array's."""
        return (len(self.places_N), *self.file.row_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, were they in memory."""
        return len(self.places_N) * self.file.row_bytes

    def __len__(self) -> int:
        return len(self.places_N)

    def __getitem__(self, rows: slice | Rows) -> Half:
        """Read rows into an array of their own, neighbours in the file at once."""
        places, size = self.places_N[rows], self.file.row_bytes
        found = np.empty((len(places), *self.file.row_shape), np.float16)
        buffer = found.reshape(-1).view(np.uint8).data
        starts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
        for start, stop in pairwise([*starts, len(places)]):
            self.file.read_into(buffer[start * size : stop * size], int(places[start]))
        return found

    def take(self, rows: Rows) -> FileRows:
        """Return some of the rows, in the order given; nothing is read."""
        return FileRows(self.file, self.places_N[rows])


def rows_of(values: Half | FileRows, rows: Rows) -> Half | FileRows:
    """Return some rows, in the order given: copied in memory, named in a file."""
    return values.take(rows) if isinstance(values, FileRows) else values[rows]


def joined(parts: Sequence[Half | FileRows]) -> Half | FileRows:
    """Return the rows of parts that are all in memory, or all of one file."""
    in_file = [part for part in parts if isinstance(part, FileRows)]
    if not in_file:
        return np.concatenate([part[:] for part in parts])
    assert len(in_file) == len(parts) and len({id(part.file) for part in in_file}) == 1
    return FileRows(in_file[0].file, np.concatenate([part.places_N for part in in_file]))
