"""JSON Lines and CSV manifests: a row per item, its image as base64 text or as a path beside the manifest.

A row that does not parse is rejected and the next one read. Paths are resolved by `images.py`, the lines of a CSV file
made into rows by `csv_rows.py`.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import BinaryIO

from zscmr_ray.data.readers.csv_rows import MAX_LINE_CHARS, CsvRows
from zscmr_ray.data.readers.fields import FieldNames, missing_column, parse_object, resolve_columns
from zscmr_ray.data.readers.quoting import listed
from zscmr_ray.data.readers.rows import Cells, RowBuilder, row_cells
from zscmr_ray.data.readers.streams import open_stream
from zscmr_ray.data.records import NOT_READ, Columns, Field, OpenFile, Record, Reject, RowRejected, ShardSpec
from zscmr_ray.errors import DataError
from zscmr_ray.schema import RejectCode

_SKIP_BYTES = 1 << 20
_MAX_KNOWN_ROWS = 1000


def read_jsonl(
    spec: ShardSpec,
    open_file: OpenFile,
    columns: Columns,
    builder: RowBuilder,
    *,
    keep: frozenset[int] | None,
) -> Iterator[Record | Reject]:
    """Yield the objects of a JSON Lines file in order, blank lines not counted.

    Every row has fields of its own; a named column that no row has is a DataError at the end.
    """
    finder = _FieldFinder(f"shard {spec.key}", columns)
    with open_stream(spec, open_file) as stream:
        for offset, line in enumerate(_lines(stream)):
            if keep is not None and offset not in keep:
                continue
            yield builder.build(str(offset), offset, partial(finder.cells, line, spec.key, open_file))
    finder.check_columns()


def read_csv(
    spec: ShardSpec,
    open_file: OpenFile,
    columns: Columns,
    builder: RowBuilder,
    *,
    needs: Collection[Field],
    keep: frozenset[int] | None,
) -> Iterator[Record | Reject]:
    """Yield the rows of a CSV file with a header line (a .tsv file: tabs) in order.

    Raises DataError for a missing column, a repeated column name, and quotes that do not pair up.
    """
    where = f"shard {spec.key}"
    with open_stream(spec, open_file) as stream:
        # Bytes that are not UTF-8 become surrogates, which reject the row they are in and no other.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = iter(CsvRows(text, delimiter="\t" if ".tsv" in spec.key.lower() else ",", where=where))
        header = next(rows, None)
        if not isinstance(header, list):
            raise DataError(
                f"{where}: no header line",
                got=header or "an empty file",
                expected="a line of column names",
                remedy="write the column names into the first line",
            )
        if len(set(header)) != len(header):
            raise DataError(
                f"{where}: repeated column names",
                got=listed(header),
                expected="a name for each column",
                remedy="rename or drop the columns of one name",
            )
        names = resolve_columns(header, columns, where=where, needs=needs)
        for offset, row in enumerate(rows):
            if keep is None or offset in keep:
                cells = partial(_csv_cells, row, header, names, spec.key, open_file)
                yield builder.build(str(offset), offset, cells)


def _csv_cells(
    row: list[str] | str, header: Sequence[str], names: FieldNames, key: str, open_file: OpenFile
) -> Cells:
    if isinstance(row, str):
        raise RowRejected(RejectCode.UNREADABLE_RECORD, row)
    return row_cells(dict(zip(header, row, strict=True)), names, key, open_file)


class _FieldFinder:
    """Finds the columns of JSON rows, whose fields may differ from row to row."""

    def __init__(self, where: str, columns: Columns) -> None:
        self._where = where
        self._columns = columns
        self._known: dict[tuple[str, ...], FieldNames] = {}
        self._first: tuple[str, ...] | None = None
        self._met: set[str] = set()

    def cells(self, line: bytes | None, key: str, open_file: OpenFile) -> Cells:
        """Return one line's cells; raises RowRejected for one that is no JSON object, or None for too long a one."""
        if line is None:
            raise RowRejected(RejectCode.UNREADABLE_RECORD, f"a line of more than {MAX_LINE_CHARS} bytes")
        row = parse_object(line, "the line")
        names = tuple(row)
        if names not in self._known:
            if len(self._known) == _MAX_KNOWN_ROWS:  # rows that all differ must not pile up
                self._known.clear()
            found = resolve_columns(names, self._columns, where=self._where, needs=(), unnamed_ok=True)
            self._known[names] = found
            self._first = self._first or names
            self._met.update(field for field in FieldNames._fields if getattr(found, field))
        return row_cells(row, self._known[names], key, open_file)

    def check_columns(self) -> None:
        """Raise DataError when rows were read and none had a column that was named in the configuration."""
        for field in FieldNames._fields if self._first is not None else ():
            wanted = getattr(self._columns, field)
            if wanted not in {None, NOT_READ} and field not in self._met:
                raise missing_column(field, wanted, self._first or (), where=self._where)


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Lines, blank ones left out; None for one that is too long, of which no more than a piece is held."""
    while line := stream.readline(MAX_LINE_CHARS + 1):
        if len(line) > MAX_LINE_CHARS:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_SKIP_BYTES)
            yield None
        elif line.strip():
            yield line
