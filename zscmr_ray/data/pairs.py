"""Cached feature rows in memory: regions, tokens, captions, labels and priors of a set of items, by column.

What it is: `pairs/part-*.parquet` tables (schema.pairs_schema) turned into arrays without a Python loop over the
features, and batches of them as padded tensors. What it is not: a reader of files (callers open tables through
`Store`), an order (data/order.py) or a split (data/splits.py).

Legend: N items, M captions (all items' captions, in order), T tokens (all captions' tokens, in order), B batch,
R image regions, L text tokens, D channels, C teacher classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from zscmr_ray.data.arrow_features import (
    list_offsets,
    priors_column,
    regions_column,
    values_buffer,
    whole_column,
)
from zscmr_ray.data.file_rows import FileRows, RowFile, joined, rows_of
from zscmr_ray.data.order import row_key
from zscmr_ray.data.region_grid import pool_regions
from zscmr_ray.errors import DataError

COLUMNS = ("id", "regions", "captions", "tokens", "labels", "partition", "prior_logits", "sha256")
"""The columns training and evaluation read; galleries add `thumbnail`."""

Keep = Callable[[pa.Table], npt.NDArray[np.bool_]]
Rows = npt.NDArray[np.int64]
Half = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Some items, each with one caption, as tensors on the CPU.

    `row_keys_B` are the stable keys that noise is drawn by; `image_keys` and `caption_keys` tell identical contents.
    """

    regions_BRD: Tensor
    tokens_BLD: Tensor
    lengths_B: Tensor
    prior_logits_BC: Tensor | None
    row_keys_B: Tensor
    ids: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    image_keys: tuple[str, ...]
    caption_keys: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PairFeatures:
    """Items by column. Feature arrays are read-only views where the tables allow it, or in a file (data/file_rows.py).

    `token_values_TD` holds every caption's tokens; `token_starts_M1` where each caption's begin (M + 1 values) and
    `caption_starts_N1` where each item's captions begin (N + 1 values).
    """

    ids: list[str]
    regions_NRD: Half | FileRows
    token_values_TD: Half | FileRows
    token_starts_M1: Rows
    caption_starts_N1: Rows
    captions: list[list[str]]
    labels: list[tuple[str, ...]]
    partition: npt.NDArray[np.str_]
    prior_logits_NC: Half | FileRows | None
    image_hash: list[str]
    thumbnails: list[bytes]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_captions(self) -> int:
        """Captions of all items, M."""
        return len(self.token_starts_M1) - 1

    @property
    def feature_bytes(self) -> int:
        """Bytes of the feature arrays, were they all in memory."""
        prior = self.prior_logits_NC
        return self.regions_NRD.nbytes + self.token_values_TD.nbytes + (0 if prior is None else prior.nbytes)

    @property
    def caption_item_M(self) -> Rows:
        """The item row of every caption, in order."""
        return np.repeat(np.arange(len(self)), np.diff(self.caption_starts_N1))

    def tokens(self, row: int, caption: int) -> Half:
        """Return one caption's token features [length, D]; `caption` counts within the item."""
        place = self.caption_starts_N1[row] + caption
        assert place < self.caption_starts_N1[row + 1], "caption out of range"
        return self.token_values_TD[self.token_starts_M1[place] : self.token_starts_M1[place + 1]]

    def select(self, rows: npt.ArrayLike) -> PairFeatures:
        """Return some items, in the order given; features in memory are copied."""
        chosen = np.asarray(rows, np.int64)
        counts = np.diff(self.caption_starts_N1)[chosen]
        captions_M = _ranges(self.caption_starts_N1[chosen], counts)
        lengths = np.diff(self.token_starts_M1)[captions_M]
        prior = self.prior_logits_NC
        return PairFeatures(
            ids=[self.ids[row] for row in chosen],
            regions_NRD=rows_of(self.regions_NRD, chosen),
            token_values_TD=rows_of(self.token_values_TD, _ranges(self.token_starts_M1[captions_M], lengths)),
            token_starts_M1=_starts(lengths),
            caption_starts_N1=_starts(counts),
            captions=[self.captions[row] for row in chosen],
            labels=[self.labels[row] for row in chosen],
            partition=self.partition[chosen],
            prior_logits_NC=None if prior is None else rows_of(prior, chosen),
            image_hash=[self.image_hash[row] for row in chosen],
            thumbnails=[self.thumbnails[row] for row in chosen] if self.thumbnails else [],
        )

    def batch(self, rows: npt.ArrayLike, caption_index: npt.ArrayLike | None = None) -> PairBatch:
        """Return items as float32 tensors, each with the caption `caption_index` [B] names (None: the first), padded."""
        chosen = np.asarray(rows, np.int64)
        which = np.zeros(len(chosen), np.int64) if caption_index is None else np.asarray(caption_index)
        tokens_BLD, lengths_B = self.padded_tokens(self.caption_starts_N1[chosen] + which)
        prior = self.prior_logits_NC
        return PairBatch(
            regions_BRD=self.image_inputs(chosen),
            tokens_BLD=tokens_BLD,
            lengths_B=lengths_B,
            prior_logits_BC=None if prior is None else torch.from_numpy(prior[chosen]).float(),
            row_keys_B=torch.tensor([row_key(self.ids[row]) for row in chosen], dtype=torch.int64),
            ids=tuple(self.ids[row] for row in chosen),
            labels=tuple(self.labels[row] for row in chosen),
            image_keys=tuple(self.image_hash[row] for row in chosen),
            caption_keys=tuple(
                self.captions[row][caption] for row, caption in zip(chosen, which, strict=True)
            ),
        )

    def image_inputs(self, rows: npt.ArrayLike) -> Tensor:
        """Return what the model's image side takes of some items: regions, float32."""
        return torch.from_numpy(self.regions_NRD[np.asarray(rows, np.int64)]).float()

    def padded_tokens(self, captions_B: npt.ArrayLike) -> tuple[Tensor, Tensor]:
        """Return tokens_BLD float32 and lengths_B int64 of some captions, numbered over all items (0..M-1)."""
        places = np.asarray(captions_B, np.int64)
        starts_B = self.token_starts_M1[places]
        lengths_B = self.token_starts_M1[places + 1] - starts_B
        longest = int(lengths_B.max(initial=0))
        tokens_BLD = torch.zeros(len(places), longest, self.token_values_TD.shape[1])
        for row, (start, length) in enumerate(zip(starts_B, lengths_B, strict=True)):
            values_LD = np.array(self.token_values_TD[start : start + length])
            tokens_BLD[row, :length] = torch.from_numpy(values_LD)
        return tokens_BLD, torch.from_numpy(lengths_B)


def load_pair_features(
    tables: Iterable[pa.Table],
    *,
    num_regions: int,
    token_channels: int,
    keep: Keep | None = None,
    region_grid: int | None = None,
    memory_bytes: int | None = None,
) -> PairFeatures:
    """Turn pairs tables into feature columns, in the tables' order.

    `num_regions` (R) and `token_channels` (D of the text side) come from the pairs' manifest; the image channels
    follow from the width of `regions`; a side that the corpus lacks has 0. `keep` returns a boolean per row of a table
    and runs before features are touched; `region_grid` pools the regions. A `thumbnail` column is kept where the tables
    have one. Features of more than `memory_bytes` are kept in a file and read when they are taken. Raises DataError for
    rows without features, StorageError where that file finds no room.
    """
    parts: list[PairFeatures] = []
    files, held_bytes = _FeatureFiles(), 0
    for table in tables:
        part = _part(table, num_regions, token_channels, keep, region_grid)
        held_bytes += part.feature_bytes
        parts.append(part)
        if memory_bytes is not None and held_bytes > memory_bytes:
            parts = [files.put(part) for part in parts]
    parts = [part for part in parts if len(part)] or parts[:1]
    if not parts:
        raise DataError(
            "there are no pairs to load", got="no parts", remedy="rerun `zscmr preprocess --overwrite`"
        )
    return parts[0] if len(parts) == 1 else _joined(parts)


class _FeatureFiles:
    """The files of features that did not fit in memory, by name and shape of a row."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, tuple[int, ...]], RowFile] = {}

    def put(self, part: PairFeatures) -> PairFeatures:
        """Return the part with its features in the files; one that is there already is returned as it is."""
        prior = part.prior_logits_NC
        return replace(
            part,
            regions_NRD=self._rows("regions", part.regions_NRD),
            token_values_TD=self._rows("tokens", part.token_values_TD),
            prior_logits_NC=None if prior is None else self._rows("priors", prior),
        )

    def _rows(self, name: str, values: Half | FileRows) -> FileRows:
        if isinstance(values, FileRows):
            return values
        shape = values.shape[1:]
        return self._files.setdefault((name, shape), RowFile(shape)).append(values)


def _part(
    table: pa.Table, num_regions: int, token_channels: int, keep: Keep | None, region_grid: int | None
) -> PairFeatures:
    if keep is not None:
        mask = keep(table)
        if not mask.all():
            table = table.take(pa.array(np.flatnonzero(mask)))
    token_lists = whole_column(table, "tokens", "text features")
    token_bytes = token_lists.flatten()
    byte_starts = list_offsets(token_bytes)
    # An image-only corpus has no token: any width fits.
    token_channels = max(token_channels, 1)
    token_width = 2 * token_channels
    if (byte_starts % token_width).any():
        raise DataError(
            "cached text features of another width",
            got=f"a caption of {int(np.diff(byte_starts)[0])} bytes",
            expected=f"a multiple of {token_channels} channels x 2 bytes",
            remedy="rerun `zscmr preprocess --overwrite`",
        )
    values = np.frombuffer(values_buffer(token_bytes), np.uint8)[byte_starts[0] : byte_starts[-1]]
    hashes = table.column("sha256").to_pylist()
    return PairFeatures(
        ids=table.column("id").to_pylist(),
        regions_NRD=pool_regions(regions_column(table, num_regions), region_grid),
        token_values_TD=values.view("<f2").reshape(-1, token_channels),
        token_starts_M1=(byte_starts - byte_starts[0]) // token_width,
        caption_starts_N1=list_offsets(token_lists) - int(list_offsets(token_lists)[0]),
        captions=table.column("captions").to_pylist(),
        labels=[tuple(names) for names in table.column("labels").to_pylist()],
        partition=np.array(table.column("partition").to_pylist(), dtype="U5"),
        prior_logits_NC=priors_column(table),
        image_hash=[
            value or name for value, name in zip(hashes, table.column("id").to_pylist(), strict=True)
        ],
        thumbnails=table.column("thumbnail").to_pylist() if "thumbnail" in table.column_names else [],
    )


def _joined(parts: Sequence[PairFeatures]) -> PairFeatures:
    priors = [part.prior_logits_NC for part in parts if part.prior_logits_NC is not None]
    if len(priors) not in {0, len(parts)} or len({part.regions_NRD.shape[1:] for part in parts}) > 1:
        raise DataError(
            "the pairs' parts were made with different backbones or teachers",
            got=sorted({str(part.regions_NRD.shape[1:]) for part in parts}),
            remedy="rerun `zscmr preprocess --overwrite`",
        )
    return PairFeatures(
        ids=[name for part in parts for name in part.ids],
        regions_NRD=joined([part.regions_NRD for part in parts]),
        token_values_TD=joined([part.token_values_TD for part in parts]),
        token_starts_M1=_starts(np.concatenate([np.diff(part.token_starts_M1) for part in parts])),
        caption_starts_N1=_starts(np.concatenate([np.diff(part.caption_starts_N1) for part in parts])),
        captions=[texts for part in parts for texts in part.captions],
        labels=[names for part in parts for names in part.labels],
        partition=np.concatenate([part.partition for part in parts]),
        prior_logits_NC=joined(priors) if priors else None,
        image_hash=[value for part in parts for value in part.image_hash],
        thumbnails=[picture for part in parts for picture in part.thumbnails],
    )


def _starts(counts: Rows) -> Rows:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _ranges(starts: Rows, counts: Rows) -> Rows:
    """Return the concatenation of [start, start + count) for every pair."""
    if not len(starts):
        return np.zeros(0, np.int64)
    return np.arange(counts.sum()) + np.repeat(starts - _starts(counts)[:-1], counts)
