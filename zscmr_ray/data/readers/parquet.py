"""Parquet shards: only the mapped columns are read, row group by row group.

Images are binary cells, {bytes, path} structs as Hugging Face datasets write them, or paths. Integer labels become
the class names that a Hugging Face schema declares for them. Extension types are read as what they are stored as:
nothing is unpickled, whatever types the process has registered. How much is decoded at a time is `parquet_memory.py`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.data.readers.fields import UNDECODABLE, FieldNames, resolve_columns
from zscmr_ray.data.readers.parquet_memory import (
    RowGroup,
    footer_file,
    plan,
    read_footer,
    row_groups,
)
from zscmr_ray.data.readers.quoting import printable, shown
from zscmr_ray.data.readers.rows import RowBuilder, row_cells
from zscmr_ray.data.readers.streams import open_stream
from zscmr_ray.data.records import Columns, Field, OpenFile, Record, Reject, ShardSpec
from zscmr_ray.errors import DataError

_HUGGING_FACE_KEY = b"huggingface"
# pyarrow raises these for damage: its own, and Python's for names and numbers that it hands on unread.
_FAULTS = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, OverflowError)


def read_parquet(
    spec: ShardSpec,
    open_file: OpenFile,
    columns: Columns,
    *,
    needs: Collection[Field],
    keep: frozenset[int] | None,
    with_images: bool,
) -> Iterator[Record | Reject]:
    """Yield the rows of a parquet shard in order; raises DataError for a damaged file or a missing column."""
    where = f"shard {spec.key}"
    with open_stream(spec, open_file) as stream:
        try:
            footer = read_footer(stream)
            metadata = pq.read_metadata(pa.BufferReader(footer_file(footer)))
            file = _File(stream, metadata, where)
            schema = file.schema
            groups = row_groups(footer)
        except _FAULTS as error:
            raise _damaged(where, "no readable footer", error) from error
        num_rows = sum(group.num_rows for group in groups)
        if num_rows != metadata.num_rows or len(groups) != metadata.num_row_groups:
            raise _damaged(where, f"{num_rows} rows in row groups of {metadata.num_rows} in all", None)
        names = resolve_columns(schema.names, columns, where=where, needs=needs)
        builder = RowBuilder(
            spec, columns, needs=needs, with_images=with_images, class_names=_class_names(schema, names.label)
        )
        _check_columns(schema, names, where)
        wanted = list(dict.fromkeys(name for name in names if name and (with_images or name != names.image)))
        for offset, row in _rows(file, groups, wanted, keep=keep):
            yield builder.build(str(offset), offset, partial(row_cells, row, names, spec.key, open_file))


class _File:
    """A parquet file, opened anew where columns are to come as dictionaries; its footer is read once."""

    def __init__(self, stream: BinaryIO, metadata: Any, where: str) -> None:
        self.where = where
        self._stream = stream
        self._metadata = metadata
        self._opened: dict[tuple[str, ...], Any] = {}
        self.schema = self._open(()).schema_arrow
        self._flat = [field.name for field in self.schema if _is_flat(field.type)]

    def batches(self, number: int, group: RowGroup, wanted: list[str]) -> Iterator[Any]:
        """Record batches of a row group, each of no more rows than memory is meant for."""
        how = plan(group, self._stream, wanted, flat=self._flat, where=self.where)
        file = self._open(how.dictionaries)
        return file.iter_batches(how.num_rows, row_groups=[number], columns=wanted)

    def _open(self, dictionaries: tuple[str, ...]) -> Any:
        if dictionaries not in self._opened:
            self._opened[dictionaries] = pq.ParquetFile(
                self._stream,
                metadata=self._metadata,
                read_dictionary=list(dictionaries),
                page_checksum_verification=True,
            )
        return self._opened[dictionaries]


def _rows(
    file: _File, groups: Sequence[RowGroup], wanted: list[str], *, keep: frozenset[int] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    offset = 0
    for number, group in enumerate(groups):
        end = offset + group.num_rows
        if keep is not None and keep.isdisjoint(range(offset, end)):
            offset = end
            continue
        if not wanted:
            yield from ((row, {}) for row in range(offset, end) if keep is None or row in keep)
            offset = end
            continue
        try:
            for batch in file.batches(number, group, wanted):
                picked = [row for row in range(batch.num_rows) if keep is None or offset + row in keep]
                rows = batch.take(picked) if len(picked) < batch.num_rows else batch
                for row, values in zip(picked, _values(rows), strict=True):
                    yield offset + row, values
                offset += batch.num_rows
        except _FAULTS as error:
            raise _damaged(file.where, f"row group {number} is unreadable", error) from error
        if offset != end:
            raise _damaged(
                file.where,
                f"row group {number} has {group.num_rows + offset - end} of {group.num_rows} rows",
                None,
            )


def _values(batch: Any) -> Iterator[dict[str, Any]]:
    columns = {name: _stored(batch.column(name)) for name in batch.schema.names}
    folded = {name: column for name, column in columns.items() if pa.types.is_dictionary(column.type)}
    rows = _plain_values(
        {name: column for name, column in columns.items() if name not in folded}, batch.num_rows
    )
    if not folded:
        yield from rows
        return
    # Row by row: each may be a copy of one enormous value.
    indices = {name: column.indices.to_pylist() for name, column in folded.items()}
    for number, row in enumerate(rows):
        for name, column in folded.items():
            index = indices[name][number]
            row[name] = None if index is None else _value(column.dictionary[index])
        yield row


def _plain_values(columns: dict[str, Any], num_rows: int) -> list[dict[str, Any]]:
    if not columns:
        return [{} for _ in range(num_rows)]
    try:
        return pa.RecordBatch.from_arrays([*columns.values()], names=[*columns]).to_pylist()
    except (UnicodeDecodeError, ValueError, OverflowError):
        # One bad cell spoils the whole batch; cell by cell it spoils its row only.
        return [{name: _value(column[row]) for name, column in columns.items()} for row in range(num_rows)]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return UNDECODABLE
    except (ValueError, OverflowError):
        # A date of the year 30,000: no Python value, and no text or picture. Rejected as what it is.
        return scalar.type


def _stored(column: Any) -> Any:
    return column.storage if isinstance(column.type, pa.BaseExtensionType) else column


def _check_columns(schema: Any, names: FieldNames, where: str) -> None:
    for name in filter(None, names):
        if schema.names.count(name) > 1:
            raise DataError(
                f"{where}: repeated column names",
                got=f"{schema.names.count(name)} columns {shown(name)}",
                expected="a name for each column",
                remedy="write the shard again, or name another column with --set data.columns",
            )
        kind = schema.field(name).type
        if _has_extension(kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind):
            raise DataError(
                f"{where}: column {shown(name)} has an extension type inside",
                got=shown(str(kind)),
                expected="text, numbers, binary, and lists or structs of them",
                remedy="write the column with plain types, or name another with --set data.columns",
            )


def _is_flat(kind: Any) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_string(kind)


def _has_extension(kind: Any) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if pa.types.is_dictionary(kind):
        return _has_extension(kind.value_type)
    return any(_has_extension(kind.field(child).type) for child in range(kind.num_fields))


def _class_names(schema: Any, label: str | None) -> list[str] | None:
    """The names of an integer label's classes, where the file's Hugging Face schema declares them."""
    raw = (schema.metadata or {}).get(_HUGGING_FACE_KEY)
    if raw is None or label is None:
        return None
    try:
        feature = json.loads(raw)["info"]["features"][label]
        feature = feature.get("feature", feature)
        names = feature["names"]
    except (ValueError, KeyError, TypeError, AttributeError):
        # Other metadata under the same key: the labels stay numbers, as in any parquet file.
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _damaged(where: str, what: str, error: Exception | None) -> DataError:
    return DataError(
        f"{where}: {what}",
        got=printable(str(error)) if error else "counts that contradict each other",
        expected="a complete parquet file",
        remedy="copy or write the shard again",
    )
