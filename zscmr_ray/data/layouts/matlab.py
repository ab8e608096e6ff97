"""Real matrices out of a MATLAB 5 file, for datasets whose features come in one. Not MATLAB 7.3 (HDF5), not cells.

Own code, because the one matrix reader that the field uses (scipy) would be a dependency for this alone. The format is
MathWorks' "MAT-File Format": a 128-byte header, then elements of {type, bytes}; a matrix is an element of elements.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import DataError

_HEADER_BYTES = 128
_COMPRESSED, _MATRIX = 15, 14
_DTYPES = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
# Of a matrix's class: 6 double, 7 single, 8 to 15 integers. Cells, structures, text and sparse ones are passed over.
_NUMERIC = range(6, 16)
_MAX_BYTES = 1 << 30


def read_matrices(data: bytes, names: Collection[str], *, where: str) -> dict[str, npt.NDArray[np.float64]]:
    """The named matrices of a file; raises DataError, naming `where`, for another format and for one that is missing."""
    if len(data) < _HEADER_BYTES or data[126:128] not in (b"IM", b"MI"):
        raise DataError(
            f"{where} is no MATLAB 5 file", got=repr(data[:20]), expected="MATLAB 5.0 MAT-file ..."
        )
    order = "<" if data[126:128] == b"IM" else ">"
    found: dict[str, npt.NDArray[np.float64]] = {}
    try:
        for kind, body in _elements(memoryview(data)[_HEADER_BYTES:], order):
            if kind == _COMPRESSED:
                inner = zlib.decompressobj().decompress(body, _MAX_BYTES)
                kind, body = next(_elements(memoryview(inner), order))
            if kind == _MATRIX:
                name, matrix = _matrix(body, order, names)
                if matrix is not None:
                    found[name] = matrix
    except (struct.error, zlib.error, ValueError, KeyError, StopIteration) as error:
        raise DataError(
            f"{where} is damaged", got=str(error), expected="a whole MATLAB 5 file", remedy="copy it again"
        ) from error
    missing = sorted(set(names) - set(found))
    if missing:
        raise DataError(
            f"{where} has no {' and no '.join(missing)}", got=sorted(found), expected=sorted(names)
        )
    return found


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    place = 0
    while place + 8 <= len(data):
        kind, num_bytes = struct.unpack_from(f"{order}II", data, place)
        if kind >> 16:
            # A small element: its size and up to four bytes share the first eight.
            yield kind & 0xFFFF, data[place + 4 : place + 4 + (kind >> 16)]
            place += 8
            continue
        if place + 8 + num_bytes > len(data):
            raise ValueError(f"an element of {num_bytes} bytes where {len(data) - place - 8} are left")
        yield kind, data[place + 8 : place + 8 + num_bytes]
        # Compressed elements are not padded.
        place += 8 + num_bytes + (0 if kind == _COMPRESSED else -num_bytes % 8)


def _matrix(
    body: memoryview, order: str, names: Collection[str]
) -> tuple[str, npt.NDArray[np.float64] | None]:
    parts = _elements(body, order)
    flags, dimensions, name = next(parts)[1], next(parts)[1], bytes(next(parts)[1]).decode("latin-1")
    if name not in names or struct.unpack_from(f"{order}I", flags)[0] & 0xFF not in _NUMERIC:
        return name, None
    shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    kind, values = next(parts)
    array = np.frombuffer(values, np.dtype(f"{order}{_DTYPES[kind]}"))
    return name, array.astype(np.float64).reshape(shape, order="F")
