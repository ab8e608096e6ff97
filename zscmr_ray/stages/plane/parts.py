"""The parquet files of a stage: full row groups, pinned options, whole before they are visible; not what goes into them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.manifest import PartRecord, part_record
from zscmr_ray.schema import PARQUET_OPTIONS, ROW_GROUP_ROWS
from zscmr_ray.storage import Store


def write_part(
    store: Store, key: str, tables: Iterable[pa.Table], *, check: Callable[[], None] | None = None
) -> PartRecord:
    """Write tables of one schema as a parquet file of full row groups; bytes do not depend on where they were cut.

    `check` is called when the file is whole and not yet visible; what it raises leaves no file.
    """
    rows = 0
    iterator = iter(tables)
    first = next(iterator)
    with store.open_write(key) as file:
        with pq.ParquetWriter(file, first.schema, **PARQUET_OPTIONS) as writer:
            for group in _row_groups(first, iterator):
                writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
                rows += group.num_rows
        if check is not None:
            check()
    return part_record(store, key, rows=rows)


def _row_groups(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    held = first
    for table in rest:
        held = pa.concat_tables([held, table])
        while held.num_rows >= ROW_GROUP_ROWS:
            yield held.slice(0, ROW_GROUP_ROWS).combine_chunks()
            held = held.slice(ROW_GROUP_ROWS)
    while held.num_rows:
        yield held.slice(0, ROW_GROUP_ROWS).combine_chunks()
        held = held.slice(ROW_GROUP_ROWS)
