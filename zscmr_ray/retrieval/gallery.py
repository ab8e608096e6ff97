"""One segment of a side on disk, image or text: vectors, what is known of each row, the thumbnails, inverted lists.

    vectors.npy        rows in id order, mapped: float32 [N, D] multiplied in place (flat), float16 beside lists
    items.arrow        Arrow IPC: id, item_id, labels, captions, thumbnail_row (-1 = none), rows in id order
    thumbnails.arrow   Arrow IPC: JPEG bytes in the order they were read, image side only
    region*.npy        image side, where embed kept them: weights of regions, and regions (region_store.py)
    lists.faiss        inverted lists of quantised vectors, where the segment has them (ivf.py)
    lists.json         their quantiser, how many are read per asking side and label weight, and the recall that gave

What it is: a layout that is written once (gallery_write.py) and read by memory mapping, so that replicas share pages.
What it is not: a place that knows of URIs, manifests, fingerprints (stages/index) or deleted rows (side_index.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval.exact import ExactIndex, FloatArray, Hits, load_exact
from zscmr_ray.retrieval.ivf import IvfIndex, load_ivf
from zscmr_ray.retrieval.ivf_tuning import Probes, Tuning
from zscmr_ray.retrieval.region_store import RegionStore, region_files

VECTORS, ITEMS, THUMBNAILS = "vectors.npy", "items.arrow", "thumbnails.arrow"
FILES = (VECTORS, ITEMS, THUMBNAILS)
LISTS, LISTS_FACTS = "lists.faiss", "lists.json"
FILTER_COLUMNS = ("id", "item_id", "labels")

_TABLE_ROWS = 8192
ITEMS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("thumbnail_row", pa.int64(), nullable=False),
    ]
)
THUMBNAILS_SCHEMA = pa.schema([pa.field("thumbnail", pa.binary())])


class Gallery:
    """An opened segment: search over its rows, and each row's id, labels, captions and thumbnail."""

    def __init__(self, folder: Path) -> None:
        self.index: ExactIndex = load_exact(folder / VECTORS)
        self.lists, self.probes = _open_lists(folder, self.index)
        items = _map_table(folder / ITEMS).combine_chunks()
        self._thumbnails = _map_table(folder / THUMBNAILS).column("thumbnail")
        if items.num_rows != self.index.num_rows:
            raise DataError(
                "vectors and items disagree",
                got=f"{self.index.num_rows} vectors, {items.num_rows} items in {folder.name}/",
                expected="one item per vector",
                remedy="run `zscmr index --overwrite`",
            )
        self._columns = {name: one_chunk(items.column(name)) for name in ITEMS_SCHEMA.names}
        self.regions = RegionStore(folder, num_rows=self.num_rows)

    @property
    def num_rows(self) -> int:
        """Rows of this segment."""
        return self.index.num_rows

    def search(
        self,
        queries_QD: FloatArray,
        *,
        k: int,
        allowed: npt.NDArray[np.bool_] | None = None,
        asked: Sequence[str | None] = (),
        label_weights: Sequence[float] = (),
    ) -> Hits:
        """Return the k best allowed rows of each query, exactly or by lists.

        `asked` is the side each query comes from and `label_weights` how it was weighed: they decide how many lists are
        read; where they are missing, the most that any side or weight needs. Raises DataError as `ExactIndex.search`.
        """
        if self.lists is None or self.probes is None:
            return self.index.search(queries_QD, k=k, allowed=allowed)
        sides: Sequence[str | None] = asked or [None] * len(queries_QD)
        weights: Sequence[float | None] = label_weights or [None] * len(queries_QD)
        numbers = [self.probes.number(*pair) for pair in zip(sides, weights, strict=True)]
        return self.lists.search(queries_QD, k=k, num_probed_Q=np.array(numbers, np.int64), allowed=allowed)

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
        return np.array(self.index.vectors_ND[row], np.float32)

    def tables(self, keep: npt.NDArray[np.bool_], *, is_text: bool) -> Iterator[pa.Table]:
        """Yield the kept rows as embedding tables, some at a time: what `write_gallery` takes, less captions of images."""
        for start in range(0, self.num_rows, _TABLE_ROWS):
            rows = start + np.flatnonzero(keep[start : start + _TABLE_ROWS])
            if not rows.size:
                continue
            place = pa.array(rows)
            flat = pa.array(self.index.vectors_ND[rows].astype(np.float16).ravel())
            columns = {
                "id": self._columns["id"].take(place),
                "vector": pa.FixedSizeListArray.from_arrays(flat, self.index.dimension),
                "labels": self._columns["labels"].take(place),
            }
            if is_text:
                captions = [self.captions_of(int(row))[0] for row in rows]
                columns |= {"item_id": self._columns["item_id"].take(place), "caption": pa.array(captions)}
            else:
                pictures = [self.thumbnail_of(int(row)) for row in rows]
                columns["thumbnail"] = pa.array(pictures, pa.binary())
            yield self.regions.add_to(pa.table(columns), rows)

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
    """The names of all files of a written segment."""
    lists = tuple(name for name in (LISTS, LISTS_FACTS) if (folder / name).exists())
    return (*FILES, *lists, *region_files(folder))


def write_facts(folder: Path, *, quantizer: str, tuning: Tuning) -> None:
    """Write beside the lists how they are searched and how well."""
    facts = {"quantizer": quantizer, "probes": tuning.probes.table, "recall_at_10": tuning.recall}
    (folder / LISTS_FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")


def _open_lists(folder: Path, exact: ExactIndex) -> tuple[IvfIndex | None, Probes | None]:
    if not (folder / LISTS).exists():
        return None, None
    facts = json.loads((folder / LISTS_FACTS).read_text())
    table = {
        side: {float(weight): int(number) for weight, number in row.items()}
        for side, row in facts["probes"].items()
    }
    return load_ivf(folder / LISTS, exact, quantizer=facts["quantizer"]), Probes(table)


def _any_of(column: pa.Array, values: Sequence[str]) -> npt.NDArray[np.bool_]:
    accepted = pa.array(list(values), pa.string())
    if not pa.types.is_list(column.type):
        return pc.is_in(column, accepted).to_numpy(zero_copy_only=False).astype(np.bool_)
    hit = pc.is_in(column.flatten(), accepted).to_numpy(zero_copy_only=False).astype(np.bool_)
    allowed = np.zeros(len(column), np.bool_)
    allowed[pc.list_parent_indices(column).to_numpy()[hit]] = True
    return allowed


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
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
