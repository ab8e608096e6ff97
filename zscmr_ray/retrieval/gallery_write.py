"""Writing a segment of a gallery (gallery.py has the layout): rows in id order, in bounded memory, once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval.gallery import (
    ITEMS,
    ITEMS_SCHEMA,
    THUMBNAILS,
    THUMBNAILS_SCHEMA,
    VECTORS,
    one_chunk,
)
from zscmr_ray.retrieval.region_store import RegionWriter

_COPY_ROWS = 16_384


def write_gallery(
    folder: Path,
    tables: Iterable[pa.Table],
    *,
    dimension: int,
    captions: Mapping[str, Sequence[str]] | None = None,
    half: bool = False,
) -> int:
    """Write one segment from its embedding tables in any order, and return its number of rows.

    Tables carry `id`, `vector`, `labels`, and either `caption` and `item_id` (texts) or `thumbnail` (images, whose
    captions come from `captions` by item id); `half` keeps vectors as float16. Raises DataError for ids that occur twice
    and for vectors of another dimension. Memory: ids, labels and captions of all rows, and the vectors of one table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unsorted = folder / ".tmp-vectors"
    slim: list[pa.Table] = []
    num_rows = 0
    num_thumbnails = 0
    with (
        unsorted.open("wb") as vectors,
        pa.OSFile(str(folder / THUMBNAILS), "wb") as sink,
        pa.ipc.new_file(sink, THUMBNAILS_SCHEMA) as thumbnails,
        RegionWriter(folder) as regions,
    ):
        for table in tables:
            vectors.write(_vectors(table, dimension=dimension).tobytes())
            kept, rows = _thumbnails(table, first=num_thumbnails)
            thumbnails.write_batch(pa.record_batch([kept], schema=THUMBNAILS_SCHEMA))
            num_thumbnails += len(kept)
            num_rows += table.num_rows
            regions.add(table)
            slim.append(_slim(table, rows, captions or {}))
    items = pa.concat_tables(slim) if slim else ITEMS_SCHEMA.empty_table()
    order = pc.sort_indices(items.column("id")).to_numpy()
    items = items.take(pa.array(order)).combine_chunks()
    _refuse_duplicates(one_chunk(items.column("id")))
    with pa.OSFile(str(folder / ITEMS), "wb") as sink, pa.ipc.new_file(sink, ITEMS_SCHEMA) as writer:
        writer.write_table(items)
    _write_sorted(folder / VECTORS, unsorted, order, dimension=dimension, dtype="<f2" if half else "<f4")
    regions.finish(order)
    unsorted.unlink()
    return num_rows


def _write_sorted(
    path: Path, unsorted: Path, order: npt.NDArray[np.uint64], *, dimension: int, dtype: str
) -> None:
    """Permute the float16 rows written so far into the file, some at a time."""
    shape = (len(order), dimension)
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        if len(order):
            source = np.memmap(unsorted, np.float16, "r", shape=shape)
            for start in range(0, len(order), _COPY_ROWS):
                file.write(source[order[start : start + _COPY_ROWS]].astype(dtype).tobytes())


def _vectors(table: pa.Table, *, dimension: int) -> npt.NDArray[np.float16]:
    column = one_chunk(table.column("vector"))
    if column.type != pa.list_(pa.float16(), dimension):
        raise DataError(
            "vectors of another shape",
            got=str(column.type),
            expected=f"fixed_size_list<float16>[{dimension}]",
        )
    flat: npt.NDArray[np.float16] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, dimension)


def _thumbnails(table: pa.Table, *, first: int) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The thumbnails that are there, and each row's place among all of them (-1 = none)."""
    if "thumbnail" not in table.column_names:
        return pa.array([], pa.binary()), np.full(table.num_rows, -1, np.int64)
    column = one_chunk(table.column("thumbnail"))
    present = pc.is_valid(column).to_numpy(zero_copy_only=False).astype(np.bool_)
    rows = np.where(present, first + np.cumsum(present) - 1, -1).astype(np.int64)
    return column.drop_null(), rows


def _slim(
    table: pa.Table, thumbnail_rows: npt.NDArray[np.int64], captions: Mapping[str, Sequence[str]]
) -> pa.Table:
    is_text = "caption" in table.column_names
    ids = table.column("id")
    if is_text:
        texts = [[caption] for caption in table.column("caption").to_pylist()]
    else:
        texts = [list(captions.get(item_id, ())) for item_id in ids.to_pylist()]
    return pa.table(
        {
            "id": ids,
            "item_id": table.column("item_id") if is_text else ids,
            "labels": table.column("labels"),
            "captions": pa.array(texts, pa.list_(pa.string())),
            "thumbnail_row": pa.array(thumbnail_rows),
        },
        schema=ITEMS_SCHEMA,
    )


def _refuse_duplicates(sorted_ids: pa.Array) -> None:
    """Ids lie in order, so equal ones are neighbours, whichever shards they came from."""
    if len(sorted_ids) < 2:
        return
    same = pc.equal(sorted_ids[1:], sorted_ids[:-1])
    twice = sorted(set(sorted_ids[1:].filter(same).to_pylist()))
    if twice:
        raise DataError(
            "ids occur more than once",
            got=f"{len(twice)} of them: {', '.join(itertools.islice(twice, 5))}{' ...' if len(twice) > 5 else ''}",
            expected="every id once over all shards",
            remedy="set data.columns.id to a unique column, or to none (ids become `<shard>#<key>`), and embed again",
        )
