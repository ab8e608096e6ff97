"""What a picture's own headers may ask of a decoder, checked before any decoder sees the bytes.

PIL bounds the pixels of a picture; these bounds are for what it does not look at. Each stands for a file that was
tried: a TIFF of 1 MB that took 1.2 GB, another that took 14 s, a JPEG of 30 KB that took 4 s at 4 megapixels, a BMP of
1 KB that took 19 s. Not decoding: that is `decode.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

# PIL keeps a pointer for every row: a picture one pixel wide needs ten times the memory of a square one.
MAX_SIDE_PX = 1 << 20
# libtiff's own limit for the JPEGs inside a TIFF. Usual scan scripts have ten scans.
MAX_JPEG_SCANS = 100
# Strips or tiles of a TIFF: PIL makes an object of 300 bytes for each before a size can be asked for.
MAX_TIFF_PIECES = 1 << 16
# Run-length coding puts at most 255 pixels into two bytes; PIL would fill up the rest of the picture one by one.
MAX_RLE_PIXELS_PER_BYTE = 128

SCAN = 0xDA
_SEQUENTIAL_FRAMES, _END = (0xC0, 0xC1), 0xD9
_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_MARKERS_WITHOUT_LENGTH = (0x01, 0xD8)
_TIFF_ORDERS: dict[bytes, Literal["little", "big"]] = {
    b"II*\0": "little",
    b"II+\0": "little",
    b"MM\0*": "big",
    b"MM\0+": "big",
}
TIFF_MAGIC = tuple(_TIFF_ORDERS)
_TILE_SIDES, _PIECE_TABLES = (322, 323), (273, 279, 324, 325)
_NUMBER_BYTES = {1: 1, 3: 2, 4: 4, 16: 8}  # TIFF's unsigned types
_MAX_TIFF_ENTRIES = 1 << 12


def excess_of(data: bytes, *, max_pixels: int) -> str | None:
    """Say which limit the headers of a JPEG, TIFF or BMP break, None when they break none."""
    if data.startswith(b"\xff\xd8"):
        if _has_too_many_scans(data):
            return f"more than {MAX_JPEG_SCANS} scans"
    elif data[:4] in _TIFF_ORDERS:
        return _excess_of_tiff(data, _TIFF_ORDERS[data[:4]], max_pixels)
    elif data.startswith(b"BM"):
        return _excess_of_bmp(data)
    return None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the marker of each segment of a JPEG and where its contents begin, a length of two bytes first, in order."""
    at = 2
    while match := _MARKER.search(data, at):
        marker, at = match[1][0], match.end()
        yield marker, at
        if marker not in _MARKERS_WITHOUT_LENGTH:
            at += int.from_bytes(data[at : at + 2], "big")


def _has_too_many_scans(data: bytes) -> bool:
    """Whether a JPEG has more scans than allowed: each may be a pass over the whole picture, however few bytes it has.

    Those of a sequential Huffman-coded one are not counted: they hold bits for every block, so that they cost no more
    than their bytes. Most pictures are such, and known after a few markers.
    """
    scans = 0
    for marker, at in jpeg_segments(data):
        if marker in _SEQUENTIAL_FRAMES or marker == _END:
            break
        if marker == SCAN:
            scans += 1
            # An upper bound first: it has what comes after the picture in it, but takes an eighth of the time.
            if scans == 1 and data.count(b"\xff\xda", at) < MAX_JPEG_SCANS:
                break
    return scans > MAX_JPEG_SCANS


def _excess_of_tiff(data: bytes, order: Literal["little", "big"], max_pixels: int) -> str | None:
    """Look at the first directory alone: no other frame is decoded. A repeated tag counts with its largest value."""
    is_big = data[2:4] in (b"+\0", b"\0+")
    count_bytes, entry_bytes, value_bytes = (8, 20, 8) if is_big else (2, 12, 4)
    first = int.from_bytes(data[8:16] if is_big else data[4:8], order)
    at = first + count_bytes
    num_entries = int.from_bytes(data[first:at], order)
    sides = dict.fromkeys(_TILE_SIDES, 0)
    if num_entries > _MAX_TIFF_ENTRIES:
        return f"a directory of {num_entries} entries, at most {_MAX_TIFF_ENTRIES}"
    for start in range(at, min(at + num_entries * entry_bytes, len(data)), entry_bytes):
        tag = int.from_bytes(data[start : start + 2], order)
        if tag not in _TILE_SIDES and tag not in _PIECE_TABLES:
            continue
        kind = int.from_bytes(data[start + 2 : start + 4], order)
        value_at = start + 4 + value_bytes
        count = int.from_bytes(data[start + 4 : value_at], order)
        if tag in _PIECE_TABLES:
            if count > MAX_TIFF_PIECES:
                return f"{count} strips or tiles, at most {MAX_TIFF_PIECES}"
            continue
        size = _NUMBER_BYTES.get(kind, 0)
        if count != 1 or not 0 < size <= value_bytes:
            return f"a tile size of type {kind}, {count} times"
        sides[tag] = max(sides[tag], int.from_bytes(data[value_at : value_at + size], order))
    width, height = sides.values()
    if width * height > max_pixels:
        return f"tiles of {width} x {height} pixels, at most {max_pixels}"
    return None


def _excess_of_bmp(data: bytes) -> str | None:
    is_run_length = (
        data[30:34] in (b"\x01\0\0\0", b"\x02\0\0\0") and int.from_bytes(data[14:18], "little") >= 40
    )
    width = int.from_bytes(data[18:22], "little")
    height = abs(int.from_bytes(data[22:26], "little", signed=True))
    if is_run_length and width * height > MAX_RLE_PIXELS_PER_BYTE * len(data):
        return f"{width} x {height} pixels run-length coded in {len(data)} bytes"
    return None
