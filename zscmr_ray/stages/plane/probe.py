"""A probe of a run: some rows of its real input through every step, in this process and without Ray.

Reads and writes where the run would (below `_probe/` of its directory, deleted at once), so that the storage is
measured too. Which shards are read is drawn by a seed. What follows from it: `forecast.py`.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from zscmr_ray.errors import DataError
from zscmr_ray.machine import peak_rss_bytes
from zscmr_ray.stages.plane.chunks import ChunkResult, DecodedChunk, Shard, Source, results_of, task_row
from zscmr_ray.stages.plane.commit import Commit, Commits, commit_part
from zscmr_ray.stages.plane.decode import DecodeShards
from zscmr_ray.stages.plane.effort import total
from zscmr_ray.stages.plane.encode import EncodeChunks, raise_what_ends_run
from zscmr_ray.stages.plane.forecast import Probe
from zscmr_ray.stages.plane.run import PlaneJob
from zscmr_ray.stages.plane.staging import staging_store

PROBE = "_probe"
NUM_ROWS = 200
_SHARDS = 4


@dataclass
class _Head:
    """The first chunks of a shard as if they were all of it; a `plane.chunks.Source` that notes what it read."""

    source: Source
    num_rows: int
    is_whole: bool = False
    chunk_bytes: int = 0

    def read(self, shard: Shard) -> Iterator[DecodedChunk]:
        rows = 0
        for chunk in self.source.read(shard):
            rows += chunk.num_in
            self.chunk_bytes = max(self.chunk_bytes, chunk.table.nbytes)
            self.is_whole = chunk.last
            is_last = chunk.last or rows >= self.num_rows
            yield replace(chunk, last=is_last)
            if is_last:
                return


@dataclass
class _Sample:
    """One shard's head, done."""

    shard: Shard
    head: _Head
    results: list[ChunkResult]
    commit: Commit

    @property
    def rows_per_byte(self) -> float:
        rows = sum(result.num_in for result in self.results)
        read_bytes = sum(result.effort.read_bytes for result in self.results)
        return rows / max(self.shard.size_bytes if self.head.is_whole else read_bytes, 1)


def probe_job(
    job: PlaneJob,
    *,
    num_rows: int = NUM_ROWS,
    seed: int = 0,
    count_rows: Callable[[Shard], int | None] | None = None,
) -> Probe:
    """Do about `num_rows` rows of up to four shards; `count_rows` knows the rows of a shard where its format says.

    Raises DataError when no shard of those drawn can be read, and what the encoder's builder raises.
    """
    shards = _draw(job.shards, seed)
    store = job.store.child(f"{PROBE}/{uuid.uuid4().hex}")
    staging = staging_store(store, 0)
    to = Commits(store, staging, job.item_output)
    try:
        started_s = time.perf_counter()
        encode = EncodeChunks(job.build_encoder, staging, max_failures=1, threads=job.plane.encoder_threads)
        start_s = time.perf_counter() - started_s
        samples: list[_Sample] = []
        commit_s = commit_cpu_s = 0.0
        wanted = -(-num_rows // len(shards))
        for shard in shards:
            head = _Head(job.source, wanted)
            results = _run_steps(
                DecodeShards(head, staging, max_failures=1, chunk_rows=job.plane.chunk_rows), encode, shard
            )
            if any(result.failure for result in results):
                continue
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            commit = commit_part(to, shard, results)
            commit_s += time.perf_counter() - began_s
            commit_cpu_s += time.process_time() - began_cpu_s
            samples.append(_Sample(shard, head, results, commit))
    finally:
        job.store.delete_tree(PROBE)
    if not sum(result.num_in for sample in samples for result in sample.results):
        raise DataError(
            "nothing to probe",
            got=f"no row in {', '.join(shard.key for shard in shards)}",
            remedy="run the stage: it names what is wrong with each shard",
        )
    total_rows = _total_rows(job.shards, samples, count_rows)
    return Probe(
        num_rows=sum(result.num_in for sample in samples for result in sample.results),
        num_out=sum(sample.commit.counts["out"] for sample in samples),
        effort=total(result.effort for sample in samples for result in sample.results),
        commit_s=commit_s,
        commit_cpu_s=commit_cpu_s,
        part_bytes=sum(file.size_bytes for sample in samples for file in sample.commit.files),
        chunk_bytes=max(sample.head.chunk_bytes for sample in samples),
        encoder_bytes=peak_rss_bytes(),
        encoder_start_s=start_s,
        total_rows=total_rows,
        shard_rows=total_rows / len(job.shards),
    )


def _draw(shards: list[Shard], seed: int) -> list[Shard]:
    if not shards:
        raise DataError("nothing to probe", got="no shards")
    return random.Random(seed).sample(shards, min(_SHARDS, len(shards)))


def _run_steps(decode: DecodeShards, encode: EncodeChunks, shard: Shard) -> list[ChunkResult]:
    rows = decode(pa.Table.from_pylist([task_row([shard])]))
    results = [result for row in rows for result in results_of(encode(row)["results"][0].as_py())]
    for result in results:
        raise_what_ends_run(result.failure)
    return results


def _total_rows(
    shards: list[Shard], samples: list[_Sample], count_rows: Callable[[Shard], int | None] | None
) -> int:
    known = [shard.num_rows for shard in shards if shard.num_rows is not None]
    if len(known) == len(shards):
        return sum(known)
    per_byte = []
    for sample in samples:
        counted = count_rows(sample.shard) if count_rows is not None else None
        size_bytes = max(sample.shard.size_bytes, 1)
        per_byte.append(sample.rows_per_byte if counted is None else counted / size_bytes)
    return max(1, round(sum(shard.size_bytes for shard in shards) * sum(per_byte) / len(per_byte)))
