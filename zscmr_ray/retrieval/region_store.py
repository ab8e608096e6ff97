"""What an index keeps of image regions beside its vectors, one row per item, mapped and read where it is asked for.

    region_weights.npy   float16 [N, R]      how much each region counts in the vector: heat maps
    regions.npy          float16 [N, R, D]   projected regions, where embed kept them: the second stage of IMFA

Each file is there only where every row has it. What it is not: a score (models/cross_scoring.py) or a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zscmr_ray.errors import DataError
from zscmr_ray.schema import provenance_of

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


class RegionStore:
    """Both arrays of one side, mapped; None where the index keeps none."""

    def __init__(self, folder: Path, *, num_rows: int) -> None:
        self.weights_NR: HalfArray | None = _map(folder / WEIGHTS, num_rows=num_rows)
        self.regions_NRD: HalfArray | None = _map(folder / REGIONS, num_rows=num_rows)


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
