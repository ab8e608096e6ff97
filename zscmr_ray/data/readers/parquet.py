"""Parquet shards: only the mapped columns are read, row group by row group.

Images are binary cells, {bytes, path} structs as Hugging Face datasets write them, or paths. Integer labels become
the class names that a Hugging Face schema declares for them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.data.readers.fields import UNDECODABLE, FieldNames, resolve_columns
from zscmr_ray.data.readers.rows import RowBuilder, row_cells
from zscmr_ray.data.readers.streams import open_stream
from zscmr_ray.data.records import Columns, Field, OpenFile, Record, Reject, ShardSpec
from zscmr_ray.errors import DataError

_BATCH_ROWS = 256
_HUGGING_FACE_KEY = b"huggingface"


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
            file = pq.ParquetFile(stream, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(where, "no readable footer", error) from error
        schema = file.schema_arrow
        names = resolve_columns(schema.names, columns, where=where, needs=needs)
        builder = RowBuilder(
            spec, columns, needs=needs, with_images=with_images, class_names=_class_names(schema, names.label)
        )
        for offset, row in _rows(file, names, where=where, keep=keep, with_images=with_images):
            yield builder.build(str(offset), offset, partial(row_cells, row, names, spec.key, open_file))


def _rows(
    file: Any, names: FieldNames, *, where: str, keep: frozenset[int] | None, with_images: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    wanted = list(dict.fromkeys(name for name in names if name and (with_images or name != names.image)))
    offset = 0
    for group in range(file.num_row_groups):
        num_rows = file.metadata.row_group(group).num_rows
        end = offset + num_rows
        if keep is not None and keep.isdisjoint(range(offset, end)):
            offset = end
            continue
        if not wanted:
            yield from ((row, {}) for row in range(offset, end) if keep is None or row in keep)
            offset = end
            continue
        try:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted):
                picked = [row for row in range(batch.num_rows) if keep is None or offset + row in keep]
                rows = batch.take(picked) if len(picked) < batch.num_rows else batch
                for row, values in zip(picked, _values(rows), strict=True):
                    yield offset + row, values
                offset += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise _damaged(where, f"row group {group} is unreadable", error) from error
        if offset != end:
            raise _damaged(where, f"row group {group} has {num_rows + offset - end} of {num_rows} rows", None)


def _values(batch: Any) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        # One bad string spoils the whole batch; cell by cell it spoils its row only.
        return [
            {name: _value(batch.column(name)[row]) for name in batch.schema.names}
            for row in range(batch.num_rows)
        ]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return UNDECODABLE


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
        got=str(error)[:300] if error else None,
        expected="a complete parquet file",
        remedy="copy or write the shard again",
    )
