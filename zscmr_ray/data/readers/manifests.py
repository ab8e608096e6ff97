"""JSON Lines and CSV manifests: a row per item, its image as base64 text or as a path beside the manifest.

A row that does not parse is rejected and the next one read. Paths are resolved by `images.py`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import BinaryIO

from zscmr_ray.data.readers.fields import FieldNames, missing_column, parse_object, resolve_columns
from zscmr_ray.data.readers.images import MAX_IMAGE_BYTES
from zscmr_ray.data.readers.rows import Cells, RowBuilder, row_cells
from zscmr_ray.data.readers.streams import open_stream
from zscmr_ray.data.records import NOT_READ, Columns, Field, OpenFile, Record, Reject, RowRejected, ShardSpec
from zscmr_ray.errors import DataError
from zscmr_ray.schema import RejectCode

# A line may hold an image in base64.
_MAX_LINE_BYTES = 2 * MAX_IMAGE_BYTES


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
        for offset, line in enumerate(_lines(stream, f"shard {spec.key}")):
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

    Raises DataError for a missing column, a repeated column name, and a quote that never closes.
    """
    where = f"shard {spec.key}"
    with open_stream(spec, open_file) as stream:
        # Bytes that are not UTF-8 become surrogates, which reject the row they are in and no other.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        delimiter = "\t" if ".tsv" in spec.key.lower() else ","
        rows = _csv_rows(text, delimiter, where)
        header = next(rows, None)
        if not isinstance(header, list):
            raise DataError(
                f"{where}: no header line", got="an empty file", expected="a line of column names"
            )
        if len(set(header)) != len(header):
            raise DataError(f"{where}: repeated column names", got=", ".join(header))
        names = resolve_columns(header, columns, where=where, needs=needs)
        for offset, row in enumerate(rows):
            if keep is None or offset in keep:
                cells = partial(_csv_cells, row, header, names, spec.key, open_file)
                yield builder.build(str(offset), offset, cells)


def _csv_cells(
    row: list[str] | csv.Error, header: Sequence[str], names: FieldNames, key: str, open_file: OpenFile
) -> Cells:
    if isinstance(row, csv.Error):
        raise RowRejected(RejectCode.UNREADABLE_RECORD, f"not a CSV row: {row}")
    if len(row) != len(header):
        reason = f"{len(row)} fields where the header has {len(header)}"
        raise RowRejected(RejectCode.UNREADABLE_RECORD, reason)
    return row_cells(dict(zip(header, row, strict=True)), names, key, open_file)


class _FieldFinder:
    """Finds the columns of JSON rows, whose fields may differ from row to row."""

    def __init__(self, where: str, columns: Columns) -> None:
        self._where = where
        self._columns = columns
        self._known: dict[tuple[str, ...], FieldNames] = {}

    def cells(self, line: bytes, key: str, open_file: OpenFile) -> Cells:
        """Return one line's cells; raises RowRejected for one that is no JSON object."""
        row = parse_object(line, "the line")
        names = tuple(row)
        if names not in self._known:
            self._known[names] = resolve_columns(
                names, self._columns, where=self._where, needs=(), unnamed_ok=True
            )
        return row_cells(row, self._known[names], key, open_file)

    def check_columns(self) -> None:
        """Raise DataError when rows were read and none had a column that was named in the configuration."""
        for field in FieldNames._fields if self._known else ():
            wanted = getattr(self._columns, field)
            if wanted not in {None, NOT_READ} and not any(
                getattr(names, field) for names in self._known.values()
            ):
                raise missing_column(field, wanted, next(iter(self._known)), where=self._where)


def _lines(stream: BinaryIO, where: str) -> Iterator[bytes]:
    while line := stream.readline(_MAX_LINE_BYTES + 1):
        if len(line) > _MAX_LINE_BYTES:
            raise DataError(
                f"{where}: an endless line", got=f"more than {_MAX_LINE_BYTES} bytes", expected="JSON Lines"
            )
        if line.strip():
            yield line


def _csv_rows(text: io.TextIOWrapper, delimiter: str, where: str) -> Iterator[list[str] | csv.Error]:
    """Rows, blank ones left out; a row that does not parse comes as its error, and reading goes on after it."""
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_LINE_BYTES))
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DataError(
                    f"{where}: the file ends inside a quoted field",
                    got=f"a quote before line {reader.line_num} that never closes",
                    expected="a complete CSV file",
                    remedy="write the file again, or double the quotes inside fields",
                ) from error
            yield error
            continue
        if row:
            yield row
