"""What an index keeps of image regions beside its vectors, one row per item, mapped and read where it is asked for.

    region_weights.npy   float16 [N, R]      how much each region counts in the vector: heat maps
    regions.npy          float16 [N, R, D]   projected regions, where embed kept them: the second stage of IMFA

Each file is there only where every row has it. What it is not: a score (models/cross_scoring.py) or a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zscmr_ray.errors import DataError
from zscmr_ray.schema import file_metadata, provenance_of

WEIGHTS, REGIONS = "region_weights.npy", "regions.npy"
REGION_FILES = (WEIGHTS, REGIONS)
_COLUMNS = {WEIGHTS: "region_weights", REGIONS: "regions"}
_COPY_BYTES = 1 << 26

HalfArray = npt.NDArray[np.float16]


class RegionWriter:
    """Collects both arrays from tables in any order, in a `with` block; `finish` then writes them in the order it is told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shapes: dict[str, tuple[int, ...] | None] = {}
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> RegionWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, table: pa.Table) -> None:
        """Append a table's rows. Raises DataError where one table has regions and another has none, or others."""
        for name in REGION_FILES if table.num_rows else ():
            rows = _rows(table, name)
            shape = None if rows is None else rows.shape[1:]
            if self._shapes.setdefault(name, shape) != shape:
                raise DataError(
                    f"some parts hold {_COLUMNS[name]} of another shape than others",
                    got=f"{shape or 'none'}",
                    expected=f"{self._shapes[name] or 'none'}, as in the first part",
                    remedy="run `zscmr embed --overwrite`, so that all parts are made alike",
                )
            if rows is not None:
                if name not in self._files:
                    self._files[name] = self._unsorted(name).open("wb")
                self._files[name].write(rows.tobytes())

    def finish(self, order: npt.NDArray[np.uint64]) -> None:
        """Write what there is, row `order[n]` as row n."""
        for name in self._files:
            shape = (len(order), *(self._shapes[name] or ()))
            source = np.memmap(self._unsorted(name), np.float16, "r", shape=shape)
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            step = max(1, _COPY_BYTES // max(1, 2 * int(np.prod(shape[1:]))))
            with (self._folder / name).open("wb") as target:
                np.lib.format.write_array_header_1_0(target, header)
                for start in range(0, len(order), step):
                    target.write(source[order[start : start + step]].astype("<f2").tobytes())
            self._unsorted(name).unlink()

    def _unsorted(self, name: str) -> Path:
        return self._folder / f".tmp-{name}"


class JoinedRows:
    """Arrays one after the other as one, read by row or by rows; of the rest of an array it has the shape."""

    def __init__(self, arrays: Sequence[HalfArray], starts: npt.NDArray[np.int64]) -> None:
        self._arrays, self._starts = arrays, starts
        self.shape = (int(starts[-1]), *arrays[0].shape[1:])

    def __getitem__(self, rows: int | npt.NDArray[np.int64]) -> HalfArray:
        if np.ndim(rows) == 0:
            number = int(np.searchsorted(self._starts, rows, side="right")) - 1
            one: HalfArray = self._arrays[number][int(rows) - int(self._starts[number])]
            return one
        return np.stack([self[int(row)] for row in np.asarray(rows)])


RowsOf = HalfArray | JoinedRows


class RegionStore:
    """Both arrays of one segment, mapped; None where the index keeps none."""

    def __init__(self, folder: Path, *, num_rows: int) -> None:
        self.weights_NR: RowsOf | None = _map(folder / WEIGHTS, num_rows=num_rows)
        self.regions_NRD: RowsOf | None = _map(folder / REGIONS, num_rows=num_rows)

    def add_to(self, table: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
        """Add the columns of these rows to a table, as embeddings have them."""
        if self.weights_NR is not None:
            flat = pa.array(self.weights_NR[rows].ravel())
            column = pa.FixedSizeListArray.from_arrays(flat, self.weights_NR.shape[1])
            table = table.append_column("region_weights", column)
        if self.regions_NRD is not None:
            shape = self.regions_NRD.shape[1:]
            values = [row.tobytes() for row in self.regions_NRD[rows]]
            table = table.append_column("regions", pa.array(values, pa.binary(2 * shape[0] * shape[1])))
            table = table.replace_schema_metadata(file_metadata({"region_shape": shape}))
        return table


class JoinedRegions:
    """Both arrays over segments; None where one of them keeps none."""

    def __init__(self, stores: Sequence[RegionStore], starts: npt.NDArray[np.int64]) -> None:
        self.weights_NR = _joined([store.weights_NR for store in stores], starts)
        self.regions_NRD = _joined([store.regions_NRD for store in stores], starts)


def joined_regions(
    stores: Sequence[RegionStore], starts: npt.NDArray[np.int64]
) -> RegionStore | JoinedRegions:
    """The arrays of several segments whose rows begin at `starts`; of one, its own."""
    return stores[0] if len(stores) == 1 else JoinedRegions(stores, starts)


def region_files(folder: Path) -> tuple[str, ...]:
    """The names of the arrays that a written side has."""
    return tuple(name for name in REGION_FILES if (folder / name).exists())


def _rows(table: pa.Table, name: str) -> HalfArray | None:
    """A table's rows of one array, [n, R] or [n, R, D]; None where it has none, or not for all of them."""
    column = _COLUMNS[name]
    if column not in table.column_names:
        return None
    values = pa.concat_arrays(table.column(column).chunks)
    if values.null_count or pa.types.is_null(values.type):
        return None
    if name == WEIGHTS:
        flat: HalfArray = values.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(table.num_rows, -1)
    shape: Mapping[str, Any] = provenance_of(table.schema)
    data = np.frombuffer(b"".join(values.to_pylist()), "<f2")
    return data.reshape(table.num_rows, *(int(size) for size in shape["region_shape"]))


def _joined(arrays: Sequence[RowsOf | None], starts: npt.NDArray[np.int64]) -> RowsOf | None:
    found = [array for array in arrays if isinstance(array, np.ndarray)]
    return JoinedRows(found, starts) if arrays and len(found) == len(arrays) else None


def _map(path: Path, *, num_rows: int) -> HalfArray | None:
    if not path.exists():
        return None
    try:
        mapped: HalfArray = np.load(path, mmap_mode="r")
    except (ValueError, OSError) as error:
        raise DataError(
            "the index file cannot be read",
            got=f"{path.name}: {error}",
            expected="a numpy array",
            remedy="run `zscmr index --overwrite`",
        ) from error
    if mapped.dtype != np.float16 or len(mapped) != num_rows:
        raise DataError(
            "regions and vectors disagree",
            got=f"{path.name}: {mapped.dtype} {list(mapped.shape)}",
            expected=f"float16 with {num_rows} rows",
            remedy="run `zscmr index --overwrite`",
        )
    return mapped
