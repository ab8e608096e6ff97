"""A plane stage from claim to manifest: what preprocess and embed do between their plan and their result.

A fresh directory is filled; a complete one is returned at once, appended to, or has its rejected shards done again
(`update.py`). Requires a running Ray as soon as there is a shard to do.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from zscmr_ray.claim import UPDATE, Claim, Update, open_stage
from zscmr_ray.errors import RefusedError
from zscmr_ray.lease import take_lease
from zscmr_ray.manifest import Manifest, StageKey
from zscmr_ray.stages.plane.commit import COMMITS, Commit, commit_key
from zscmr_ray.stages.plane.finish import clear_bookkeeping, finish_stage, stage_manifest
from zscmr_ray.stages.plane.run import PlaneJob, run_plane
from zscmr_ray.stages.plane.staging import STAGING
from zscmr_ray.stages.plane.update import plan_update
from zscmr_ray.storage import Store


def run_directory(
    store: Store,
    key: StageKey,
    prepare: Callable[[], PlaneJob],
    *,
    info: dict[str, Any],
    overwrite: bool = False,
    update: Update | None = None,
) -> tuple[Manifest, bool]:
    """Bring a stage directory to the state of this key; returns its manifest, and whether there was nothing to do.

    `prepare` makes the job over all shards of the input, and is called only when there may be something to do. Raises
    what `open_stage`, `plan_update` and `run_plane` raise.
    """
    with open_stage(store, key, overwrite=overwrite, update=update) as claim:
        if claim.complete is not None:
            _clear_leftovers(store, claim.complete)
            return claim.complete, True
        job = prepare()
        if claim.before is None:
            commits = run_plane(job, lease=claim.lease, config_hash=key.config_hash)
            return finish_stage(claim, commits, info=info), False
        assert update is not None
        return _update(claim, claim.before, update, job, info=info)


def _update(
    claim: Claim, before: Manifest, update: Update, job: PlaneJob, *, info: dict[str, Any]
) -> tuple[Manifest, bool]:
    plan = plan_update(before, job.shards, update, redo_changed=job.redo_changed)
    if not plan.todo and claim.key == before.key:
        return before, True
    print(f"{job.stage}: --{update}: {len(plan.todo)} of {len(job.shards)} shards to do", file=sys.stderr)
    kept_parts = {record.part for record in plan.kept}
    kept = [part for part in before.parts if part.name.rpartition("/")[2] in kept_parts]
    # New parts have new names and are written in place; parts that are made again are prepared beside the old ones.
    store = claim.store if update is Update.APPEND else claim.store.child(UPDATE)
    commits: list[Commit] = []
    if plan.todo:
        work = replace(job, store=store, shards=plan.todo)
        commits = run_plane(work, lease=claim.lease, config_hash=claim.key.config_hash)
    manifest = stage_manifest(claim.key, commits, info=info, kept=plan.kept, kept_parts=kept)
    if update is Update.APPEND:
        claim.finish(manifest)
    else:
        claim.switch(manifest)
    clear_bookkeeping(claim.store)
    return manifest, False


def _clear_leftovers(store: Store, complete: Manifest) -> None:
    """Delete the bookkeeping that a kill left behind a finished manifest; an unfinished append keeps its own."""
    if not (store.exists(STAGING) or store.exists(COMMITS)):
        return
    # Whoever holds the lease is at work with it.
    with contextlib.suppress(RefusedError), take_lease(store, complete.key.stage):
        done = {commit_key(record.part) for record in complete.shards}
        if all(info.key in done for info in store.list(COMMITS)):
            clear_bookkeeping(store)
