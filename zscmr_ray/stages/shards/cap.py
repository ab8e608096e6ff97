"""`data.max_items_per_class`: a scan of ids and labels before the real pass, and the offsets it keeps per shard.

Which items a class keeps depends on all shards (those with the smallest sha256(id)), so it is decided before any is
read for good. Images are not read here.
"""

from __future__ import annotations

from dataclasses import replace

import ray

from zscmr_ray.config import DataSection
from zscmr_ray.data.records import Reject
from zscmr_ray.data.splits import select_capped
from zscmr_ray.errors import DataError
from zscmr_ray.progress import Progress
from zscmr_ray.stages.plane.chunks import Shard, batch_shards
from zscmr_ray.stages.shards.source import KEEP, admitted
from zscmr_ray.storage import Store

ScannedRow = tuple[int, str, tuple[str, ...]]


def cap_classes(
    store: Store, data: DataSection, shards: list[Shard], *, stage: str, cpus: float
) -> list[Shard]:
    """Return the shards with the row offsets to keep in their detail (unreadable ones as they are).

    The real pass reports an unreadable shard; here it has no rows to choose from.
    """
    assert data.max_items_per_class is not None
    scan = ray.remote(num_cpus=cpus)(scan_shards)
    found: dict[str, list[ScannedRow]] = {}
    pending = [scan.remote(store, data, task) for task in batch_shards(shards)]
    with Progress(f"{stage}: class scan", total=len(pending), unit="tasks") as progress:
        while pending:
            done, pending = ray.wait(pending, num_returns=1)
            found.update(ray.get(done[0]))
            progress.advance()
    return keep_offsets(shards, found, data.max_items_per_class)


def scan_shards(store: Store, data: DataSection, shards: list[Shard]) -> dict[str, list[ScannedRow]]:
    """Offset, id and labels of every admissible row, by part."""
    found = {}
    for shard in shards:
        try:
            rows = admitted(store, data, shard, with_images=False)
            found[shard.part] = [
                (row[0].offset, row[1].id, row[1].labels) for row in rows if not isinstance(row, Reject)
            ]
        except DataError:
            continue
    return found


def keep_offsets(
    shards: list[Shard], found: dict[str, list[ScannedRow]], max_items_per_class: int
) -> list[Shard]:
    """Choose over all shards, and note each shard's kept offsets in its detail."""
    rows = [(part, *row) for part in sorted(found) for row in found[part]]
    mask = select_capped([row[2] for row in rows], [row[3] for row in rows], max_items_per_class)
    kept: dict[str, list[int]] = {part: [] for part in found}
    for (part, offset, _, _), is_kept in zip(rows, mask, strict=True):
        if is_kept:
            kept[part].append(offset)
    return [
        replace(shard, detail=shard.detail | {KEEP: kept[shard.part]}) if shard.part in kept else shard
        for shard in shards
    ]
