"""A plane job without Ray: the same decode, encode and commit, one chunk after another in this process.

For what does not depend on Ray: what the stages write. Scheduling, crashes and widths are tested on a real one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from zscmr_ray.lease import Lease
from zscmr_ray.stages.plane import run as plane_run
from zscmr_ray.stages.plane.chunks import ChunkResult, result_of, task_row
from zscmr_ray.stages.plane.commit import Commit, Commits, commit_part
from zscmr_ray.stages.plane.decode import DecodeShards
from zscmr_ray.stages.plane.encode import EncodeChunks
from zscmr_ray.stages.plane.run import PlaneJob
from zscmr_ray.stages.plane.staging import staging_store


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run their plane jobs in this process."""
    monkeypatch.setattr(plane_run, "run_plane", run_in_process)


def run_in_process(job: PlaneJob, *, lease: Lease | None = None, config_hash: str = "") -> list[Commit]:
    """Do every shard; a failed one is an error at once."""
    staging = staging_store(job.store, lease.note.epoch if lease is not None else 0)
    fence = lease.fence if lease is not None else None
    to = Commits(job.store, staging, job.item_output, config_hash, fence)
    encode = EncodeChunks(job.build_encoder, staging, max_failures=3, threads=1)
    decode = DecodeShards(job.source, staging, max_failures=3)
    commits = []
    for shard in job.shards:
        results = list(_results(decode, encode, pa.Table.from_pylist([task_row([shard])])))
        assert not [result.failure for result in results if result.failure], results
        commits.append(commit_part(to, shard, results))
    return commits


def _results(decode: DecodeShards, encode: EncodeChunks, task: pa.Table) -> Iterator[ChunkResult]:
    for row in decode(task):
        yield result_of(encode(row)["result"][0].as_py())
