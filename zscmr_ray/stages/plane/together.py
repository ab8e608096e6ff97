"""Decode and encode in one process: an actor that takes shards and gives results; what it decodes never leaves it.

Between processes a decoded picture (150 KB) is copied into a chunk, an IPC stream and the object store, and two more
processes wake for it: 1.3 of 6.3 CPU-ms a picture on two cores. The same steps on the same chunks, so the same bytes.
When it is used: `resources.works_together`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from zscmr_ray.stages.plane.chunks import ChunkResult, EncoderBuilder, results_row
from zscmr_ray.stages.plane.decode import DecodeShards
from zscmr_ray.stages.plane.encode import EncodeChunks

# Each row of results costs the driver some 8 ms of Ray Data's loop: 2% of two cores with a row for every 64 pictures, and
# its Python 3.3% of a core with a row for 256, 1.2% for 512.
_BUNDLES_PER_ROW = 8


class EmbedShards:
    """Callable class for `map_batches` over task rows; the steps' own options."""

    def __init__(self, decode: DecodeShards, build: EncoderBuilder, *, threads: int) -> None:
        self.decode = decode
        self.encode = EncodeChunks(build, decode.store, max_failures=decode.max_failures, threads=threads)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield a row of results for the first bundle of chunks, and then for each few, when their tables are staged.

        How they are grouped depends on the task alone: Ray takes the n-th row of a repeated task for the n-th of the first.
        """
        held: list[ChunkResult] = []
        for number, bundle in enumerate(self.decode.bundles(batch)):
            held += [self.encode.result(chunk.header, chunk.table) for chunk in bundle]
            if number % _BUNDLES_PER_ROW == 0:
                yield results_row(held)
                held = []
        if held:
            yield results_row(held)
