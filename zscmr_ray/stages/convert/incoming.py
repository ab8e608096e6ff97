"""One row of a clip-retrieval directory to a row of ours: its id, its captions' numbers, its vectors, or why not.

Pure: arrays and tables in, columns out. Rules: a row's vectors must be finite and not zero, except where the row has
no image (null `image_path`, our own export) or no caption (null or blank); neighbouring rows with one id are one item
with several captions, whose image vectors must agree; an id that comes back later is a duplicate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zscmr_ray.schema import RejectCode
from zscmr_ray.stages.convert.layout import IMAGES, TEXTS
from zscmr_ray.stages.plane.chunks import RejectedRow

USED_COLUMNS = (
    "image_path", "caption", "caption_id", "labels", "source_shard", "source_offset", "sha256",
)  # fmt: skip
# A vector that was of unit length before it was rounded to half precision is kept as it is, byte for byte.
_HALF_ROUNDING = 1e-3

Vectors = npt.NDArray[np.floating[Any]]
Half = npt.NDArray[np.float16]


@dataclass
class IncomingBatch:
    """Columns of both sides and the rejected rows of one batch."""

    image: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    rejected: list[RejectedRow] = field(default_factory=list)


class IncomingRows:
    """Reads one numbered file from its first row to its last; remembers the ids it has seen."""

    def __init__(
        self, *, shard_key: str, id_column: str | None, blocks: Sequence[Mapping[str, Any]], stage: str
    ) -> None:
        self._shard_key, self._id_column, self._blocks, self._stage = shard_key, id_column, blocks, stage
        self._seen: set[str] = set()
        self._last_id: str | None = None
        self._captions = 0
        self._image: bytes | None = None

    def read(self, table: pa.Table, vectors: Mapping[str, Vectors], *, first: int) -> IncomingBatch:
        """Convert the next rows; `first` is the number of the first one in its file."""
        columns = {name: table[name].to_pylist() for name in USED_COLUMNS if name in table.column_names}
        ids = _ids(table, self._id_column, shard_key=self._shard_key, first=first)
        units = {folder: unit_blocks(values, self._blocks) for folder, values in vectors.items()}
        has_path = "image_path" in columns
        batch = IncomingBatch()
        images: list[int] = []
        texts: list[int] = []
        text_ids: list[str] = []
        for row, item in enumerate(ids):
            caption = columns["caption"][row] if TEXTS in vectors else None
            wants = {
                IMAGES: IMAGES in vectors and not (has_path and columns["image_path"][row] is None),
                TEXTS: isinstance(caption, str) and bool(caption.strip()),
            }
            same = item is not None and item == self._last_id
            number = self._captions if same else 0
            problem = self._problem(item, same=same, row=row, wants=wants, units=units)
            if not same and item is not None and item not in self._seen:
                self._seen.add(item)
                self._last_id, self._captions, self._image = item, 0, None
            if item is not None and item == self._last_id and wants[TEXTS]:
                self._captions += 1
            if problem is not None:
                batch.rejected.append(RejectedRow(item, self._shard_key, first + row, self._stage, *problem))
                continue
            assert item is not None
            if wants[IMAGES] and self._image is None:
                images.append(row)
                self._image = units[IMAGES].half_ND[row].tobytes()
            if wants[TEXTS]:
                texts.append(row)
                text_ids.append(_caption_id(columns, row, item=item, number=number))
        batch.image = self._image_columns(columns, ids, images, units, first=first)
        batch.text = _text_columns(columns, ids, texts, text_ids, units)
        return batch

    def _problem(
        self, item: str | None, *, same: bool, row: int, wants: Mapping[str, bool], units: Mapping[str, Any]
    ) -> tuple[str, str] | None:
        """Why the row cannot be used, or None."""
        if not item:
            return RejectCode.BAD_ID, f"no id in column {self._id_column}"
        if item in self._seen and not same:
            return RejectCode.DUPLICATE_ID, "the id occurred before, and not in the row before"
        if not any(wants.values()):
            return RejectCode.MISSING_CAPTION, "neither an image nor a caption"
        for folder in (IMAGES, TEXTS):
            reason = units[folder].problems[row] if wants[folder] else None
            if reason is not None:
                return RejectCode.NON_FINITE, f"{folder}: {reason}"
        if same and wants[IMAGES] and self._image not in (None, units[IMAGES].half_ND[row].tobytes()):
            return RejectCode.DUPLICATE_ID, "the row before has the same id and another image vector"
        return None

    def _image_columns(
        self,
        columns: Mapping[str, list[Any]],
        ids: Sequence[str | None],
        rows: Sequence[int],
        units: Mapping[str, UnitVectors],
        *,
        first: int,
    ) -> dict[str, Any]:
        if IMAGES not in units:
            return {}
        shards, offsets = columns.get("source_shard"), columns.get("source_offset")
        hashes = columns.get("sha256")
        return {
            "id": [ids[row] for row in rows],
            "vector": _fixed_list(units[IMAGES].half_ND[rows]),
            "thumbnail": [None] * len(rows),
            "labels": _labels(columns, rows),
            "region_weights": [None] * len(rows),
            "source_shard": [(shards and shards[row]) or self._shard_key for row in rows],
            "source_offset": [
                first + row if not offsets or offsets[row] is None else int(offsets[row]) for row in rows
            ],
            "sha256": [hashes[row] if hashes and isinstance(hashes[row], str) else None for row in rows],
        }


@dataclass(frozen=True, slots=True)
class UnitVectors:
    """Rows as unit blocks in half precision, and for each row why it is none (None where it is)."""

    half_ND: Half
    problems: list[str | None]


def unit_blocks(vectors_ND: Vectors, blocks: Sequence[Mapping[str, Any]]) -> UnitVectors:
    """Normalise each block of each row; rows that are unit blocks in half precision already keep their bytes.

    >>> made = unit_blocks(np.array([[3.0, 4.0], [0.0, 0.0]]), [{"name": "region", "start": 0, "stop": 2}])
    >>> made.half_ND[0].tolist(), made.problems
    ([0.60009765625, 0.7998046875], [None, 'a zero vector has no direction'])
    """
    # Half precision is computed in float32, which is exact enough to round to it again.
    precision: Any = np.float64 if vectors_ND.dtype == np.float64 else np.float32
    wide_ND: npt.NDArray[Any] = np.array(vectors_ND, precision)
    finite_N: npt.NDArray[np.bool_] = np.atleast_1d(np.isfinite(wide_ND).all(axis=1))
    wide_ND[~finite_N] = 0.0
    zero_N = np.zeros(len(wide_ND), np.bool_)
    unit_N = finite_N.copy()
    for block in blocks:
        part_ND = wide_ND[:, block["start"] : block["stop"]]
        # Scaled by the largest entry first: squares of very small or large numbers leave the range.
        largest_N = np.abs(part_ND).max(axis=1)
        zero_N |= largest_N == 0.0
        part_ND /= np.where(largest_N == 0.0, 1.0, largest_N)[:, None]
        norm_N = np.sqrt(np.einsum("nd,nd->n", part_ND, part_ND))
        norm_N[norm_N == 0.0] = 1.0
        part_ND /= norm_N[:, None]
        unit_N &= np.abs(norm_N * largest_N - 1.0) <= _HALF_ROUNDING
    if vectors_ND.dtype == np.float16:
        half_ND = np.where(unit_N[:, None], vectors_ND, wide_ND.astype(np.float16))
    else:
        half_ND = wide_ND.astype(np.float16)
    problems: list[str | None] = [None] * len(wide_ND)
    for row in np.flatnonzero(zero_N | ~finite_N).tolist():
        problems[row] = "a zero vector has no direction" if finite_N[row] else "NaN or infinity in the vector"
    return UnitVectors(half_ND, problems)


def _ids(table: pa.Table, column: str | None, *, shard_key: str, first: int) -> list[str | None]:
    if column is None:
        return [f"{shard_key}#{first + row}" for row in range(table.num_rows)]
    return [None if value is None else str(value) for value in table[column].to_pylist()]


def _caption_id(columns: Mapping[str, list[Any]], row: int, *, item: str, number: int) -> str:
    """The id our export gave the caption, where it belongs to this item; else the item's next number."""
    given = columns["caption_id"][row] if "caption_id" in columns else None
    if isinstance(given, str) and given.startswith(f"{item}#") and given[len(item) + 1 :].isdecimal():
        return given
    return f"{item}#{number}"


def _text_columns(
    columns: Mapping[str, list[Any]],
    ids: Sequence[str | None],
    rows: Sequence[int],
    text_ids: list[str],
    units: Mapping[str, UnitVectors],
) -> dict[str, Any]:
    if TEXTS not in units:
        return {}
    return {
        "id": text_ids,
        "item_id": [ids[row] for row in rows],
        "caption": [columns["caption"][row] for row in rows],
        "vector": _fixed_list(units[TEXTS].half_ND[rows]),
        "labels": _labels(columns, rows),
    }


def _labels(columns: Mapping[str, list[Any]], rows: Sequence[int]) -> list[list[str]]:
    if "labels" not in columns:
        return [[]] * len(rows)
    values = (columns["labels"][row] for row in rows)
    return [[str(one) for one in value] if isinstance(value, list) else [] for value in values]


def _fixed_list(values_ND: Half) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_ND.ravel()), values_ND.shape[1])
