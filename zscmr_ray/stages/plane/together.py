"""Decode and encode in one process: an actor that takes shards and gives results; what it decodes never leaves it.

Between processes a decoded picture (150 KB) is copied into a chunk, an IPC stream and the object store, and two more
processes wake for it: 1.3 of 6.3 CPU-ms a picture on two cores. The same steps on the same chunks, so the same bytes.
When it is used: `resources.works_together`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from zscmr_ray.stages.plane.chunks import EncoderBuilder, results_row
from zscmr_ray.stages.plane.decode import DecodeShards
from zscmr_ray.stages.plane.encode import EncodeChunks


class EmbedShards:
    """Callable class for `map_batches` over task rows; the steps' own options."""

    def __init__(self, decode: DecodeShards, build: EncoderBuilder, *, threads: int) -> None:
        self.decode = decode
        self.encode = EncodeChunks(build, decode.store, max_failures=decode.max_failures, threads=threads)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield a row of results for each bundle of chunks, as soon as its tables are staged."""
        for bundle in self.decode.bundles(batch):
            yield results_row([self.encode.result(chunk.header, chunk.table) for chunk in bundle])
