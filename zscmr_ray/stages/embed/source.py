"""The CPU half of embed: a part of `pairs` to chunks of rows. Runs in decode tasks, so it imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.errors import DataError
from zscmr_ray.manifest import Manifest
from zscmr_ray.stages.plane.chunks import DecodedChunk, Shard
from zscmr_ray.storage import Store

# What the encoder reads; `thumbnail` is added where it is kept.
COLUMNS = (
    "id",
    "regions",
    "captions",
    "tokens",
    "labels",
    "partition",
    "prior_logits",
    "source_shard",
    "source_offset",
    "sha256",
)


@dataclass(frozen=True)
class FeatureSource:
    """Reads parts of pairs; a `plane.chunks.Source`."""

    pairs: Store
    columns: tuple[str, ...]
    chunk_rows: int

    def read(self, shard: Shard) -> Iterator[DecodedChunk]:
        """Yield the part's rows, `chunk_rows` at a time; raises DataError when the part is not as its manifest says."""
        with self.pairs.open(shard.key) as file:
            try:
                part = pq.ParquetFile(file)
            except pa.ArrowInvalid as error:
                raise _damaged(self.pairs, shard, str(error)) from error
            if part.metadata.num_rows != shard.num_rows:
                raise _damaged(self.pairs, shard, f"{part.metadata.num_rows} rows")
            yield from self._chunks(part)

    def _chunks(self, part: pq.ParquetFile) -> Iterator[DecodedChunk]:
        left = part.metadata.num_rows
        if not left:
            yield DecodedChunk(part.read(self.columns), (), 0, 0, last=True)
        for batch in part.iter_batches(self.chunk_rows, columns=self.columns):
            left -= batch.num_rows
            yield DecodedChunk(pa.Table.from_batches([batch]), (), batch.num_rows, 0, last=left == 0)


def shards_of(manifest: Manifest) -> list[Shard]:
    """Every data part of pairs as a shard; the embeddings' parts keep its name."""
    return [
        Shard(part.name, part.name, part.size_bytes, num_rows=part.rows)
        for part in manifest.parts
        if "/" not in part.name
    ]


def _damaged(store: Store, shard: Shard, got: str) -> DataError:
    return DataError(
        "a part is not the one its manifest describes",
        got=f"{store.uri}/{shard.key}: {got}",
        expected=f"{shard.num_rows} rows of parquet",
        remedy="run `zscmr preprocess --overwrite`",
    )
