"""The decode step: a generator that turns a batch of shards into bundles of chunks. Runs as Ray tasks; imports no torch.

Ray Data never retries an ordinary exception but aborts the whole job, and `max_errored_blocks` would drop chunks
silently; so every exception becomes a failure in the stream here. A crash of the worker is retried by Ray without end; the
attempt after `max_failures` emits a failure instead of reading the shard again.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from zscmr_ray.errors import StorageError, ZscmrError
from zscmr_ray.stages.plane.chunks import (
    Failure,
    PackedChunk,
    Shard,
    Source,
    bundle_row,
    bundles,
    pack_chunk,
    pack_failure,
    shards_of_task,
)
from zscmr_ray.stages.plane.effort import timed_chunks
from zscmr_ray.stages.plane.staging import end_attempt, note_attempt
from zscmr_ray.storage import Store

_DECODE = "decode"
# The code of a failure that is the storage's and no shard's.
STORAGE = "storage"


class DecodeShards:
    """Callable for `map_batches` over task rows; `chunk_rows` is how many rows a full chunk has.

    `noted` are the parts whose attempt stands noted.
    """

    def __init__(self, source: Source, store: Store, *, max_failures: int, chunk_rows: int) -> None:
        self.source, self.store = source, store
        self.max_failures, self.chunk_rows = max_failures, chunk_rows
        self.noted: set[str] = set()

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield the chunks of every shard of the task, a row for each bundle."""
        for bundle in self.bundles(batch):
            yield bundle_row(bundle)

    def bundles(self, batch: pa.Table) -> Iterator[list[PackedChunk]]:
        """Yield the chunks of every shard of the task, in bundles."""
        packed = (chunk for shard in shards_of_task(batch) for chunk in self._shard(shard))
        return bundles(packed, max_rows=self.chunk_rows)

    def _shard(self, shard: Shard) -> Iterator[PackedChunk]:
        index = 0
        try:
            attempt = note_attempt(self.store, shard.part, what=_DECODE)
            if refusal := attempt.refusal(self.max_failures, doing="at work on it"):
                yield pack_failure(shard, index, refusal)
                return
            self.noted.add(shard.part)
            for chunk, effort in timed_chunks(self.source.read(shard)):
                yield pack_chunk(shard, index, chunk, effort)
                index += 1
            self.noted.discard(shard.part)
            end_attempt(self.store, attempt)
        except Exception as error:
            yield pack_failure(shard, index, failure_of(error))


def failure_of(error: Exception) -> Failure:
    """Say an exception as a failure: our own errors in their words, others with their type."""
    if isinstance(error, StorageError):
        return Failure(STORAGE, str(error))
    if isinstance(error, ZscmrError):
        return Failure("unreadable", str(error))
    return Failure("error", f"{type(error).__name__}: {error}")
