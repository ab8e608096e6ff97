"""The end of a stage: the manifest over its commits, and the bookkeeping gone. How a shard is committed: `commit.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from zscmr_ray.claim import Claim
from zscmr_ray.manifest import Manifest, PartRecord, ShardRecord, StageKey
from zscmr_ray.stages.plane.commit import COMMITS, Commit
from zscmr_ray.stages.plane.staging import STAGING
from zscmr_ray.storage import Store


def finish_stage(claim: Claim, commits: Iterable[Commit], *, info: dict[str, Any]) -> Manifest:
    """Write the manifest over all commits, then delete the bookkeeping: a finished directory holds output only."""
    manifest = stage_manifest(claim.key, commits, info=info)
    claim.finish(manifest)
    clear_bookkeeping(claim.store)
    return manifest


def stage_manifest(
    key: StageKey,
    commits: Iterable[Commit],
    *,
    info: dict[str, Any],
    kept: Iterable[ShardRecord] = (),
    kept_parts: Iterable[PartRecord] = (),
) -> Manifest:
    """The manifest over commits and what an update keeps: the same as if one run had done it all."""
    commits = list(commits)
    parts = [*kept_parts, *(file for commit in commits for file in commit.files)]
    ordered = sorted([*kept, *(commit.record for commit in commits)], key=lambda shard: shard.part)
    totals: Counter[str] = Counter()
    for shard in ordered:
        totals.update(shard.counts)
        totals.update({f"rejected_{code}": count for code, count in shard.rejected.items()})
    return Manifest(
        key=key,
        config_hash=key.config_hash,
        counts={name: totals[name] for name in sorted(totals)} | {"shards": len(ordered)},
        parts=sorted(parts, key=lambda record: record.name),
        shards=ordered,
        info=info,
    )


def clear_bookkeeping(store: Store) -> None:
    """Delete what a finished stage no longer needs (also after a kill between manifest and deletion)."""
    store.delete_tree(STAGING)
    store.delete_tree(COMMITS)
