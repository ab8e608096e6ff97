"""How far the stages of a run are, from their directories alone: manifest, owner's mark, lease with its progress note.

Reads only, and asks nobody: it works beside a running driver, after a dead one, from another machine and on S3.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from zscmr_ray.lease import LeaseNote, read_lease
from zscmr_ray.manifest import STAGE_MARK, Manifest, read_manifest
from zscmr_ray.stages import stage_directories
from zscmr_ray.storage import Store

State = Literal["done", "running", "failed", "to do"]

_KILLED = "its driver ended without a word (killed?)"


@dataclass(frozen=True)
class StageStatus:
    """One stage: its state, how much is done of how much, and who is or was at work.

    Counts are of the run in progress, or of the whole directory when it is done; None = not known.
    """

    stage: str
    directory: str
    state: State
    shards_done: int | None = None
    num_shards: int | None = None
    shards_failed: int | None = None
    rows_done: int | None = None
    num_rows: int | None = None
    rows_rejected: int | None = None
    rows_per_s: float | None = None
    left_s: float | None = None
    update: str | None = None
    holder: str | None = None
    heard_s: float | None = None
    problem: str | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The facts that are known, for `--json`."""
        return {name: value for name, value in asdict(self).items() if value not in (None, {})}


def read_status(uri: str) -> list[StageStatus]:
    """The state of every stage of a run directory, or of the one stage directory; raises DataError when it is neither."""
    return [stage_status(store, stage) for stage, store in stage_directories(uri).items()]


def stage_status(store: Store, stage: str) -> StageStatus:
    """The state of one stage directory."""
    manifest, note = read_manifest(store), read_lease(store)
    if note is not None and note.looks_held:
        return _from_note(store, note, "running")
    problem = _problem(note)
    if manifest is not None:
        # An update that failed leaves the directory as complete as it was.
        return _done(
            store, manifest, problem if note is not None and note.progress.get("update") else None, note
        )
    if note is not None:
        return _from_note(store, note, "failed", problem=problem or _KILLED)
    if store.exists(STAGE_MARK):
        return StageStatus(stage, store.uri, "failed", problem=_KILLED)
    return StageStatus(stage, store.uri, "to do")


def status_lines(found: StageStatus) -> list[str]:
    """A stage in words: its state with numbers, and below it who works on it or what went wrong."""
    facts = [
        _of(found.shards_done, found.num_shards, "shards"),
        _of(found.rows_done, found.num_rows, "rows"),
        f"{found.rows_rejected} rejected" if found.rows_rejected else "",
        f"{found.shards_failed} shards failed" if found.shards_failed else "",
        f"{found.rows_per_s:.1f} rows/s" if found.rows_per_s and found.state == "running" else "",
        f"{found.left_s:.0f} s left" if found.left_s is not None else "",
    ]
    what = f"{found.state} (--{found.update})" if found.update and found.state != "done" else found.state
    lines = [f"{found.stage:<11}{what:<8} {', '.join(fact for fact in facts if fact)}".rstrip()]
    if found.state == "running" and found.holder:
        lines.append(f"{'':<11}{found.holder}, heard of {found.heard_s or 0:.0f} s ago")
    if found.problem:
        begun = f"--{found.update} of {found.holder}" if found.update else found.holder or ""
        lines.append(f"{'':<11}{begun + ': ' if begun else ''}{found.problem}")
        lines.append(f"{'':<11}the same command goes on where it stopped")
    return lines


def _done(store: Store, manifest: Manifest, problem: str | None, note: LeaseNote | None) -> StageStatus:
    counts = manifest.counts
    shards, rows = counts.get("shards"), counts.get("in")
    return StageStatus(
        manifest.key.stage,
        store.uri,
        "done",
        shards_done=shards,
        num_shards=shards,
        rows_done=rows,
        num_rows=rows,
        rows_rejected=counts.get("rejected"),
        update=note.progress.get("update") if problem and note is not None else None,
        holder=note.holder if problem and note is not None else None,
        problem=problem,
        counts=counts,
    )


def _from_note(store: Store, note: LeaseNote, state: State, *, problem: str | None = None) -> StageStatus:
    progress = note.progress
    done, total, rate = (progress.get(name) for name in ("rows_done", "num_rows", "rows_per_s"))
    left_s = max(total - done, 0) / rate if state == "running" and total is not None and rate else None
    return StageStatus(
        note.stage,
        store.uri,
        state,
        shards_done=progress.get("shards_done"),
        num_shards=progress.get("num_shards"),
        shards_failed=progress.get("shards_failed"),
        rows_done=done,
        num_rows=total,
        rows_per_s=rate,
        left_s=None if left_s is None else round(left_s, 1),
        update=progress.get("update"),
        holder=note.holder,
        heard_s=round(max(time.time() - note.renewed_s, 0.0), 1),
        problem=problem,
    )


def _problem(note: LeaseNote | None) -> str | None:
    if note is None:
        return None
    return note.error if note.ended else _KILLED


def _of(done: int | None, total: int | None, unit: str) -> str:
    if done is None:
        return ""
    return f"{done:,} {unit}" if total is None or total == done else f"{done:,}/{total:,} {unit}"
