"""Which shards an update of a complete directory does, and what it refuses.

Append: shards that are new; those there before must be the same. Retry: shards with rejected rows, repaired or not.
Either way the result is, byte for byte, what a fresh run over the same input gives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zscmr_ray.claim import Update
from zscmr_ray.errors import RefusedError
from zscmr_ray.manifest import Manifest, ShardRecord
from zscmr_ray.stages.plane.chunks import Shard
from zscmr_ray.stages.plane.commit import shard_fingerprint

_NAMED = 10


@dataclass(frozen=True)
class UpdatePlan:
    """The records that stay as they are, and the shards to do."""

    kept: list[ShardRecord]
    todo: list[Shard]


def plan_update(before: Manifest, shards: list[Shard], update: Update, *, redo_changed: bool) -> UpdatePlan:
    """Compare the directory's shards with the input's; raises RefusedError naming what the update may not touch."""
    records = {record.key: record for record in before.shards}
    found = {shard.key: shard for shard in shards}
    if not records and before.parts:
        raise RefusedError(
            "the directory does not say which shards it was made of",
            got="a manifest without shards, written by an earlier version",
            expected="a record of every shard",
            remedy="--overwrite to make it anew",
        )
    added = [key for key in sorted(found) if key not in records]
    changed = [
        key
        for key in sorted(found)
        if key in records and records[key].fingerprint != shard_fingerprint(found[key])
    ]
    _refuse("removed", [key for key in sorted(records) if key not in found], update)
    if update is Update.APPEND:
        _refuse("changed", changed, update)
        todo = set(added)
    else:
        _refuse("added", added, update)
        bad = {key for key, record in records.items() if record.counts["rejected"]}
        if not redo_changed:
            _refuse(
                "changed without having rejected rows", [key for key in changed if key not in bad], update
            )
        todo = bad | set(changed)
    return UpdatePlan(
        [record for key, record in records.items() if key not in todo],
        [shard for shard in shards if shard.key in todo],
    )


def _refuse(what: str, keys: Iterable[str], update: Update) -> None:
    names = list(keys)
    if not names:
        return
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    remedy = "put them back as they were, or --overwrite to do everything again"
    if what == "added":
        remedy = "--append first"
    elif what == "changed" and update is Update.APPEND:
        remedy += "; --retry-rejected does shards with rejected rows again"
    raise RefusedError(
        f"--{update} would leave output that is not of this input",
        got=f"{len(names)} shards were {what}: {', '.join(names[:_NAMED])}{more}",
        expected="the shards the directory was made of"
        + (", and new ones" if update is Update.APPEND else ""),
        remedy=remedy,
    )
