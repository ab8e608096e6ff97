"""Resumable states of a training in progress, in `checkpoint/engine/step-*/`: torn ones are never taken for whole.

    step-00000050/<DeepSpeed's files of every rank>   torch pickles, read only after their checksums held
                  run.json, best.safetensors          where the run stands, and its best weights so far
                  complete.json                       LAST: every file with its sha256, the ZeRO stage, the ranks

What it is not: the checkpoint that training ends with (engine/checkpoint.py), or Ray Train's own checkpoints: the state
goes to the run's store directly, so that it outlives driver, cluster and worker alike.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from zscmr_ray.engine.base import Engine
from zscmr_ray.engine.collectives import barrier, broadcast_value, gather_values, rank, world_size
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.storage import Store

FOLDER = "engine"
COMPLETE = "complete.json"
RUN = "run.json"
BEST = "best.safetensors"
_ENGINE_FILES = "ranks/"


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A whole state found on disk: its directory, where the run stood, and its best weights so far."""

    name: str
    run: dict[str, Any]
    best: dict[str, Tensor] | None
    files: tuple[str, ...]


def save_state(
    store: Store,
    engine: Engine,
    *,
    step: int,
    run: Mapping[str, Any],
    best: Mapping[str, Tensor] | None,
    zero_stage: int,
    keep: int,
) -> None:
    """Write a resumable state after `step` steps and delete all but the newest `keep`. Every rank must call it."""
    state = store.child(f"{FOLDER}/{_name(step)}")
    if rank() == 0:
        # Of an undisturbed rerun of the same step: without its last file the state counts for nothing.
        state.delete(COMPLETE)
    barrier()
    with tempfile.TemporaryDirectory(prefix="zscmr-") as folder:
        engine.save(Path(folder))
        written = _put_folder(state, Path(folder))
    records = {key: digest for part in gather_values(written) for key, digest in part.items()}
    if rank() == 0:
        state.write_json(RUN, run)
        records[RUN] = state.sha256(RUN)
        if best is not None:
            state.write_bytes(BEST, safetensors.torch.save(dict(best)))
            records[BEST] = state.sha256(BEST)
        state.write_json(COMPLETE, {"files": records, "zero_stage": zero_stage, "num_workers": world_size()})
        for name in _names(store)[:-keep]:
            store.child(FOLDER).delete_tree(name)
    barrier()


def newest_state(store: Store, *, zero_stage: int) -> ResumePoint | None:
    """Return the newest state whose files all hold, the same on every rank; None where there is none.

    Torn and corrupt ones are passed over, aloud. Raises ConfigError for one of another ZeRO stage, or of another
    number of workers where the optimiser's state is divided among them.
    """
    chosen: str | None = None
    if rank() == 0:
        for name in reversed(_names(store)):
            fault = _fault(store.child(f"{FOLDER}/{name}"))
            if fault is None:
                chosen = name
                break
            print(f"train: passing over {FOLDER}/{name}: {fault}", file=sys.stderr, flush=True)
    chosen = broadcast_value(chosen)
    if chosen is None:
        return None
    state = store.child(f"{FOLDER}/{chosen}")
    complete = state.read_json(COMPLETE)
    _check_layout(complete, zero_stage)
    best = safetensors.torch.load(state.read_bytes(BEST)) if BEST in complete["files"] else None
    files = tuple(sorted(key for key in complete["files"] if key.startswith(_ENGINE_FILES)))
    return ResumePoint(name=chosen, run=state.read_json(RUN), best=best, files=files)


def load_engine(store: Store, point: ResumePoint, engine: Engine) -> None:
    """Put an engine where the state left it. Every rank must call it."""
    state = store.child(f"{FOLDER}/{point.name}")
    with tempfile.TemporaryDirectory(prefix="zscmr-") as folder:
        for key in point.files:
            target = Path(folder) / key.removeprefix(_ENGINE_FILES)
            target.parent.mkdir(parents=True, exist_ok=True)
            with state.open(key) as reader, target.open("wb") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)
        engine.load(Path(folder))


def delete_states(store: Store) -> None:
    """Delete all resumable states: the training they belong to is complete."""
    store.delete_tree(FOLDER)


def _put_folder(state: Store, folder: Path) -> dict[str, str]:
    written = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        key = _ENGINE_FILES + path.relative_to(folder).as_posix()
        state.put_file(key, path)
        written[key] = state.sha256(key)
    return written


def _names(store: Store) -> list[str]:
    """The states' directories, oldest first, torn ones included."""
    keys = (info.key.split("/") for info in store.list(FOLDER))
    return sorted({parts[1] for parts in keys if len(parts) > 2})


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _fault(state: Store) -> str | None:
    if not state.exists(COMPLETE):
        return "it was not written to its end"
    try:
        files = state.read_json(COMPLETE)["files"]
        bad = [key for key, digest in files.items() if state.sha256(key) != digest]
    except (DataError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{bad[0]} has another checksum" if bad else None


def _check_layout(complete: Mapping[str, Any], zero_stage: int) -> None:
    found = (complete["zero_stage"], complete["num_workers"])
    if found[0] == zero_stage and (zero_stage == 0 or found[1] == world_size()):
        return
    raise ConfigError(
        "the training to go on with divided its optimiser state otherwise",
        got=f"train.zero_stage={zero_stage}, {world_size()} workers",
        expected=f"train.zero_stage={found[0]}, {found[1]} workers, as it began",
        remedy="go on with those settings, or begin anew with --overwrite",
    )
