"""How many rows of a row group may be decoded at once: by what they may come to, not by their number.

A picture of 100 MB in a dictionary is written once and read as often as there are rows, from a file of a few KB. The
footer and the header of the dictionary page tell, before anything is decompressed. The footer is parsed here because
pyarrow's own view of a damaged column chunk ends the process. Format: Apache Parquet, parquet.thrift, in Thrift's
compact protocol.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, BinaryIO

from zscmr_ray.errors import DataError

MAX_BATCH_ROWS = 256
# Each batch copies its dictionaries once more; in one, rows cost nothing until they are unfolded.
_MAX_FOLDED_ROWS = 4096
_BATCH_BYTES = 64 << 20
# Where 256 rows of a dictionary's largest value are little, whatever it is.
_USUAL_DICTIONARY_BYTES = 5 << 18
# Pictures hardly shrink and text shrinks tenfold. Below this size whatever it holds is harmless.
_MAX_RATIO, _HARMLESS_BYTES = 200, 256 << 20
_TAIL_BYTES = 1 << 16
_HEADER_BYTES = 32
_MAGIC = b"PAR1"
# Field numbers of parquet.thrift.
_ROW_GROUPS, _COLUMNS, _NUM_ROWS, _META = 4, 1, 3, 3
_PATH, _UNCOMPRESSED, _COMPRESSED, _DICTIONARY_OFFSET = 3, 6, 7, 11
_PAGE_UNCOMPRESSED = 2
_MAX_DEPTH = 16
_MAX_SHIFT = 63


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """What the footer says of one column of a row group; `dictionary_offset` is 0 without a dictionary."""

    path: str
    plain_bytes: int
    packed_bytes: int
    dictionary_offset: int


@dataclass(frozen=True, slots=True)
class RowGroup:
    """What the footer says of one row group."""

    num_rows: int
    columns: tuple[ColumnChunk, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How to decode a row group: so many rows at a time, and which columns as dictionaries, unfolded row by row."""

    num_rows: int
    dictionaries: tuple[str, ...]


def read_footer(stream: BinaryIO) -> bytes:
    """Return a file's footer; raises ValueError for a file that ends in none."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - _TAIL_BYTES))
    tail = stream.read(_TAIL_BYTES)
    if len(tail) < 12 or tail[-4:] != _MAGIC:
        raise ValueError(f"the file ends in {tail[-4:]!r}, not in {_MAGIC!r}")
    length = int.from_bytes(tail[-8:-4], "little")
    if length + 12 > size:
        raise ValueError(f"a footer of {length} bytes in a file of {size}")
    if length + 8 > len(tail):
        stream.seek(size - 8 - length)
        tail = stream.read(length + 8)
    return tail[-8 - length : -8]


def footer_file(footer: bytes) -> bytes:
    """Return a file of the footer alone, for pyarrow to parse without reading it again."""
    return _MAGIC + footer + len(footer).to_bytes(4, "little") + _MAGIC


def row_groups(footer: bytes) -> list[RowGroup]:
    """Return what a footer says of its row groups; raises ValueError for one that does not parse."""
    try:
        groups = _Thrift(footer).read_struct().get(_ROW_GROUPS, [])
        return [
            RowGroup(_whole(group[_NUM_ROWS]), tuple(_chunk(column[_META]) for column in group[_COLUMNS]))
            for group in groups
        ]
    except (IndexError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise ValueError(f"a footer that does not parse: {type(error).__name__}") from error


def plan(
    group: RowGroup, stream: BinaryIO, wanted: Collection[str], *, flat: Collection[str], where: str
) -> Plan:
    """Return how to decode the columns `wanted` of a row group; those of `flat` are plain texts or binaries.

    Raises DataError for a column that expands out of all proportion.
    """
    row_bytes, dictionaries = 0, []
    for column in group.columns:
        if column.path not in wanted:
            continue
        if column.plain_bytes > max(_HARMLESS_BYTES, _MAX_RATIO * column.packed_bytes):
            raise DataError(
                f"{where}: a decompression bomb",
                got=f"column {column.path}: {column.packed_bytes} bytes that expand to {column.plain_bytes}",
                expected="text or pictures",
                remedy="write the shard again, or leave it out",
            )
        row_bytes += column.plain_bytes // max(1, group.num_rows)
        num_bytes = _dictionary_bytes(column, stream)
        if num_bytes > _USUAL_DICTIONARY_BYTES and column.path in flat:
            dictionaries.append(column.path)
        elif num_bytes > _USUAL_DICTIONARY_BYTES:
            row_bytes += num_bytes
    most = _MAX_FOLDED_ROWS if dictionaries else MAX_BATCH_ROWS
    num_rows = max(1, min(most, _BATCH_BYTES // max(1, row_bytes)))
    return Plan(num_rows, tuple(dictionaries))


def _dictionary_bytes(column: ColumnChunk, stream: BinaryIO) -> int:
    """What the largest value of a column's dictionary may come to: its whole page."""
    if not column.dictionary_offset or column.plain_bytes <= _USUAL_DICTIONARY_BYTES:
        return 0
    stream.seek(column.dictionary_offset)
    header = _Thrift(stream.read(_HEADER_BYTES)).read_struct(last=_PAGE_UNCOMPRESSED)
    return int(header.get(_PAGE_UNCOMPRESSED, 0))


def _chunk(meta: dict[int, Any]) -> ColumnChunk:
    top = meta[_PATH][0].decode("utf-8", "replace")
    sizes = (meta[_UNCOMPRESSED], meta[_COMPRESSED], meta.get(_DICTIONARY_OFFSET, 0))
    return ColumnChunk(top, *map(_whole, sizes))


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} where a number belongs")
    return value


class _Thrift:
    """Values in the compact protocol: structs as dicts by field number, lists, integers and bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read_struct(self, *, last: int | None = None, depth: int = 0) -> dict[int, Any]:
        """Read a struct, or its fields up to number `last`; raises IndexError where the data end."""
        fields: dict[int, Any] = {}
        number = 0
        while last is None or number < last:
            head = self._byte()
            if head == 0:
                break
            step, kind = head >> 4, head & 15
            number = number + step if step else self._integer()
            fields[number] = self._value(kind, depth=depth, in_list=False)
        return fields

    def _value(self, kind: int, *, depth: int, in_list: bool) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("a footer nested without end")
        match kind:
            case 1 | 2:
                return self._byte() == 1 if in_list else kind == 1
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._integer()
            case 7:
                return self._bytes(8)
            case 8:
                return self._bytes(self._varint())
            case 9 | 10:
                head = self._byte()
                size = head >> 4 if head < 0xF0 else self._varint()
                if size > len(self._data):
                    raise ValueError("a list longer than its file")
                return [self._value(head & 15, depth=depth + 1, in_list=True) for _ in range(size)]
            case 12:
                return self.read_struct(depth=depth + 1)
        raise ValueError(f"a value of type {kind}")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > _MAX_SHIFT:
                raise ValueError("a number without end")

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
