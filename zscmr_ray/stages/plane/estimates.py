"""How far a run of the plane is: rows expected, and the note of it that `zscmr status` reads. Never part of the output."""

from __future__ import annotations

from collections.abc import Mapping

from zscmr_ray.lease import Lease
from zscmr_ray.progress import Progress
from zscmr_ray.stages.plane.chunks import Shard
from zscmr_ray.stages.plane.commit import Commit


class RowEstimate:
    """How many rows there are: as the input says, else by the rows per byte of the shards that are done."""

    def __init__(self, shards: list[Shard]) -> None:
        known = [shard.num_rows for shard in shards if shard.num_rows is not None]
        self.total = sum(known) if len(known) == len(shards) else None
        self._is_known = self.total is not None
        self._all_bytes = sum(shard.size_bytes for shard in shards)
        self._rows = self._bytes = 0

    def after(self, shard: Shard, num_rows: int) -> int:
        """The total once this shard, of so many rows, is done too."""
        self._rows += num_rows
        self._bytes += shard.size_bytes
        if not self._is_known:
            self.total = round(self._rows * self._all_bytes / max(self._bytes, 1))
        assert self.total is not None
        return self.total


class Reporter:
    """Notes shards, rows and rate in the driver's lease; counts include what earlier runs have done."""

    def __init__(self, lease: Lease | None, shards: list[Shard], done: Mapping[str, Commit]) -> None:
        self._lease = lease
        self._num_shards = len(shards)
        self._shards_before = len(done)
        self._rows_before = sum(commit.counts["in"] for commit in done.values())

    def report(self, progress: Progress, *, num_done: int, num_failed: int) -> None:
        """Note where the run is. Raises RefusedError when the lease was lost meanwhile."""
        if self._lease is None:
            return
        if self._lease.is_lost:
            self._lease.fence.check()
        rows = self._rows_before + progress.done
        self._lease.report(
            num_shards=self._num_shards,
            shards_done=self._shards_before + num_done,
            shards_failed=num_failed,
            rows_done=rows,
            num_rows=None if progress.total is None else self._rows_before + progress.total,
            rows_per_s=round(progress.rate_per_s, 2),
        )
