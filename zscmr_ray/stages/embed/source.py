"""The CPU half of embedding from pairs: a part to chunks of rows. Runs in decode tasks, so it imports no torch.

Either the cached features are read, or, for a model that made none of them, the kept original images are decoded again.
Embedding from raw shards reads them with stages/shards instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.data.decode import decode_image
from zscmr_ray.data.records import RowRejected
from zscmr_ray.errors import DataError
from zscmr_ray.manifest import Manifest
from zscmr_ray.stages.plane.chunks import DecodedChunk, RejectedRow, Shard
from zscmr_ray.stages.plane.effort import timed_open
from zscmr_ray.stages.shards.pixels import PIXELS, pixels_column
from zscmr_ray.stages.shards.source import PixelSpec
from zscmr_ray.storage import Store

# What every row of vectors needs; `thumbnail` is added where it is kept.
ROW_COLUMNS = ("id", "captions", "labels", "source_shard", "source_offset", "sha256")
COLUMNS = (*ROW_COLUMNS, "regions", "tokens", "partition", "prior_logits")


@dataclass(frozen=True)
class FeatureSource:
    """Reads parts of pairs; a `plane.chunks.Source`. With `pixels`, their kept images are decoded in that way."""

    pairs: Store
    columns: tuple[str, ...]
    chunk_rows: int
    pixels: PixelSpec | None = None
    max_pixels: int = 0
    scaled_jpeg: bool = False

    def read(self, shard: Shard) -> Iterator[DecodedChunk]:
        """Yield the part's rows, `chunk_rows` at a time; raises DataError when the part is not as its manifest says."""
        with timed_open(self.pairs)(shard.key) as file:
            try:
                part = pq.ParquetFile(file)
            except pa.ArrowInvalid as error:
                raise _damaged(self.pairs, shard, str(error)) from error
            if part.metadata.num_rows != shard.num_rows:
                raise _damaged(self.pairs, shard, f"{part.metadata.num_rows} rows")
            for chunk in self._chunks(part):
                yield chunk if self.pixels is None else self._decoded(chunk, self.pixels)

    def _chunks(self, part: pq.ParquetFile) -> Iterator[DecodedChunk]:
        left = part.metadata.num_rows
        if not left:
            yield DecodedChunk(part.read(self.columns), (), 0, 0, last=True)
        for batch in part.iter_batches(self.chunk_rows, columns=self.columns):
            left -= batch.num_rows
            yield DecodedChunk(pa.Table.from_batches([batch]), (), batch.num_rows, 0, last=left == 0)

    def _decoded(self, chunk: DecodedChunk, pixels: PixelSpec) -> DecodedChunk:
        table, rejects, size = chunk.table, [], pixels.size_px
        pixels_BHW3 = np.empty((table.num_rows, size, size, 3), np.uint8)
        good = np.ones(table.num_rows, bool)
        for row, data in enumerate(table["image"]):
            try:
                image = decode_image(
                    data.as_py() or b"",
                    size_px=size,
                    crop_fraction=pixels.crop_fraction,
                    interpolation=pixels.interpolation,
                    fit=pixels.fit,
                    max_pixels=self.max_pixels,
                    thumbnail_px=None,
                    scaled_jpeg=self.scaled_jpeg,
                )
                pixels_BHW3[row] = image.pixels_HW3
            except RowRejected as reason:
                good[row] = False
                rejects.append(_reject(table, row, reason))
        table = table.drop_columns(["image"]).append_column(PIXELS, pixels_column(pixels_BHW3))
        kept = table if good.all() else table.filter(pa.array(good))
        return DecodedChunk(kept, tuple(rejects), chunk.num_in, 0, chunk.last)


def shards_of(manifest: Manifest) -> list[Shard]:
    """Every data part of pairs as a shard; the embeddings' parts keep its name."""
    return [
        Shard(part.name, part.name, part.size_bytes, num_rows=part.rows, detail={"sha256": part.sha256})
        for part in manifest.parts
        if "/" not in part.name
    ]


def _reject(table: pa.Table, row: int, reason: RowRejected) -> RejectedRow:
    return RejectedRow(
        table["id"][row].as_py(),
        table["source_shard"][row].as_py(),
        table["source_offset"][row].as_py(),
        "decode",
        reason.code.value,
        reason.reason,
    )


def _damaged(store: Store, shard: Shard, got: str) -> DataError:
    return DataError(
        "a part is not the one its manifest describes",
        got=f"{store.uri}/{shard.key}: {got}",
        expected=f"{shard.num_rows} rows of parquet",
        remedy="run `zscmr preprocess --overwrite`",
    )
