"""One side of an index on disk, image or text: vectors, what is known of each row, and the thumbnails.

    vectors.npy        float32 [N, D], rows in id order, mapped and multiplied in place
    items.arrow        Arrow IPC: id, item_id, labels, captions, thumbnail_row (-1 = none), rows in id order
    thumbnails.arrow   Arrow IPC: JPEG bytes in the order they were read, image side only
    region*.npy        image side, where embed kept them: weights of regions, and regions (region_store.py)

What it is: a layout that is written once in bounded memory and read by memory mapping, so that replicas share pages.
What it is not: a place that knows of URIs, manifests or fingerprints (stages/index.py does).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval.exact import ExactIndex, load_exact
from zscmr_ray.retrieval.region_store import RegionStore, RegionWriter, region_files

VECTORS, ITEMS, THUMBNAILS = "vectors.npy", "items.arrow", "thumbnails.arrow"
FILES = (VECTORS, ITEMS, THUMBNAILS)
FILTER_COLUMNS = ("id", "item_id", "labels")

_COPY_ROWS = 16_384
_ITEMS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("thumbnail_row", pa.int64(), nullable=False),
    ]
)
_THUMBNAILS_SCHEMA = pa.schema([pa.field("thumbnail", pa.binary())])


class Gallery:
    """An opened side: exact search over its rows, and each row's id, labels, captions and thumbnail."""

    def __init__(self, folder: Path) -> None:
        self.index: ExactIndex = load_exact(folder / VECTORS)
        items = _map_table(folder / ITEMS).combine_chunks()
        self._thumbnails = _map_table(folder / THUMBNAILS).column("thumbnail")
        if items.num_rows != self.index.num_rows:
            raise DataError(
                "vectors and items disagree",
                got=f"{self.index.num_rows} vectors, {items.num_rows} items in {folder.name}/",
                expected="one item per vector",
                remedy="run `zscmr index --overwrite`",
            )
        self._columns = {name: _one_chunk(items.column(name)) for name in _ITEMS_SCHEMA.names}
        self.regions = RegionStore(folder, num_rows=self.num_rows)

    @property
    def num_rows(self) -> int:
        """Rows of this side."""
        return self.index.num_rows

    def row_of(self, row_id: str) -> int | None:
        """Return the row of an id, or None when this side has no such id (a question, not a failure)."""
        ids, low, high = self._columns["id"], 0, self.num_rows
        while low < high:
            middle = (low + high) // 2
            if ids[middle].as_py() < row_id:
                low = middle + 1
            else:
                high = middle
        return low if low < self.num_rows and ids[low].as_py() == row_id else None

    def id_of(self, row: int) -> str:
        """The id of a row."""
        return str(self._columns["id"][row].as_py())

    def item_id_of(self, row: int) -> str:
        """The id of the item a row belongs to: itself for an image, the captioned item for a text."""
        return str(self._columns["item_id"][row].as_py())

    def labels_of(self, row: int) -> tuple[str, ...]:
        """The classes of a row."""
        return tuple(self._columns["labels"][row].as_py())

    def captions_of(self, row: int) -> tuple[str, ...]:
        """The captions of a row's item in their own order; a text row's single caption."""
        return tuple(self._columns["captions"][row].as_py())

    def has_thumbnail(self, row: int) -> bool:
        """Whether a row has a thumbnail."""
        return int(self._columns["thumbnail_row"][row].as_py()) >= 0

    def thumbnail_of(self, row: int) -> bytes | None:
        """The JPEG thumbnail of a row, or None where none was kept."""
        at = int(self._columns["thumbnail_row"][row].as_py())
        return None if at < 0 else bytes(self._thumbnails[at].as_py())

    def vector_of(self, row: int) -> npt.NDArray[np.float32]:
        """The stored vector of a row: unweighted unit blocks [D]."""
        return np.array(self.index.vectors_ND[row])

    def mask(self, conditions: Mapping[str, Sequence[str]]) -> npt.NDArray[np.bool_] | None:
        """Return which rows [N] meet every condition (column -> accepted values, any of them); None without any.

        Raises DataError for a column that cannot be filtered on.
        """
        if not conditions:
            return None
        allowed = np.ones(self.num_rows, np.bool_)
        for column, values in conditions.items():
            if column not in FILTER_COLUMNS:
                raise DataError("no such filter column", got=column, expected=", ".join(FILTER_COLUMNS))
            allowed &= _any_of(self._columns[column], values)
        return allowed


def gallery_files(folder: Path) -> tuple[str, ...]:
    """The names of all files of a written side."""
    return (*FILES, *region_files(folder))


def write_gallery(
    folder: Path,
    tables: Iterable[pa.Table],
    *,
    dimension: int,
    captions: Mapping[str, Sequence[str]] | None = None,
) -> int:
    """Write one side from its embedding tables in any order, and return its number of rows.

    Tables carry `id`, `vector`, `labels`, and either `caption` and `item_id` (texts) or `thumbnail` (images, whose
    captions come from `captions` by item id). Raises DataError for ids that occur twice and for vectors of another
    dimension. Memory: ids, labels and captions of all rows, and the vectors of one table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unsorted = folder / ".tmp-vectors"
    slim: list[pa.Table] = []
    num_rows = 0
    num_thumbnails = 0
    with (
        unsorted.open("wb") as vectors,
        pa.OSFile(str(folder / THUMBNAILS), "wb") as sink,
        pa.ipc.new_file(sink, _THUMBNAILS_SCHEMA) as thumbnails,
        RegionWriter(folder) as regions,
    ):
        for table in tables:
            vectors.write(_vectors(table, dimension=dimension).tobytes())
            kept, rows = _thumbnails(table, first=num_thumbnails)
            thumbnails.write_batch(pa.record_batch([kept], schema=_THUMBNAILS_SCHEMA))
            num_thumbnails += len(kept)
            num_rows += table.num_rows
            regions.add(table)
            slim.append(_slim(table, rows, captions or {}))
    items = pa.concat_tables(slim) if slim else _ITEMS_SCHEMA.empty_table()
    order = pc.sort_indices(items.column("id")).to_numpy()
    items = items.take(pa.array(order)).combine_chunks()
    _refuse_duplicates(_one_chunk(items.column("id")))
    with pa.OSFile(str(folder / ITEMS), "wb") as sink, pa.ipc.new_file(sink, _ITEMS_SCHEMA) as writer:
        writer.write_table(items)
    _write_sorted(folder / VECTORS, unsorted, order, dimension=dimension)
    regions.finish(order)
    unsorted.unlink()
    return num_rows


def _write_sorted(path: Path, unsorted: Path, order: npt.NDArray[np.uint64], *, dimension: int) -> None:
    """Permute the float16 rows written so far into the float32 file, some at a time."""
    shape = (len(order), dimension)
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        if len(order):
            source = np.memmap(unsorted, np.float16, "r", shape=shape)
            for start in range(0, len(order), _COPY_ROWS):
                file.write(source[order[start : start + _COPY_ROWS]].astype("<f4").tobytes())


def _vectors(table: pa.Table, *, dimension: int) -> npt.NDArray[np.float16]:
    column = _one_chunk(table.column("vector"))
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
    column = _one_chunk(table.column("thumbnail"))
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
        schema=_ITEMS_SCHEMA,
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


def _any_of(column: pa.Array, values: Sequence[str]) -> npt.NDArray[np.bool_]:
    accepted = pa.array(list(values), pa.string())
    if not pa.types.is_list(column.type):
        return pc.is_in(column, accepted).to_numpy(zero_copy_only=False).astype(np.bool_)
    hit = pc.is_in(column.flatten(), accepted).to_numpy(zero_copy_only=False).astype(np.bool_)
    allowed = np.zeros(len(column), np.bool_)
    allowed[pc.list_parent_indices(column).to_numpy()[hit]] = True
    return allowed


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
    )


def _map_table(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            "the index file cannot be read",
            got=f"{path.name}: {error}",
            expected="an Arrow IPC file",
            remedy="run `zscmr index --overwrite`",
        ) from error
