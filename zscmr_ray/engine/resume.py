"""Resumable states of a training in progress, in `checkpoint/engine/step-*/`: torn ones are never taken for whole.

    step-00000050/ranks/<files of every rank>   DeepSpeed's torch pickles, read only after their checksums held
                  run.json, best.safetensors    where the run stands, and its best weights so far
                  complete.json                 LAST: every file with its sha256, the ZeRO stage, the ranks, the model

Going on at the same number of ranks is exact; at another one the engine divides its state anew. The best validated
weights are in every state, so that keeping the newest few keeps them too.

What it is not: the checkpoint that training ends with (engine/checkpoint.py), or Ray Train's own checkpoints: the state
goes to the run's store directly, so that it outlives driver, cluster and worker alike.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import safetensors.torch
from torch import Tensor

from zscmr_ray.engine.base import Engine
from zscmr_ray.engine.collectives import broadcast_value, gather_values, rank, world_size
from zscmr_ray.engine.scratch import scratch_folder
from zscmr_ray.errors import ConfigError, DataError, RefusedError, StorageError, UnsavedStateError
from zscmr_ray.storage import Store
from zscmr_ray.storage.store import json_bytes

FOLDER = "engine"
COMPLETE = "complete.json"
RUN = "run.json"
BEST = "best.safetensors"
_ENGINE_FILES = "ranks/"
_FACTS = {"files", "zero_stage", "num_workers", "architecture"}


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A whole state found on disk: its directory, where the run stood, its best weights so far, the ranks that wrote it."""

    name: str
    run: dict[str, Any]
    best: dict[str, Tensor] | None
    files: tuple[str, ...]
    num_workers: int


def save_state(
    store: Store,
    engine: Engine,
    *,
    step: int,
    run: Mapping[str, Any],
    best: Mapping[str, Tensor] | None,
    zero_stage: int,
    architecture: Mapping[str, Any],
    keep: int,
) -> None:
    """Write a resumable state after `step` steps and delete all but the newest `keep`. Every rank must call it.

    Raises UnsavedStateError, on every rank alike, when one of them cannot write; the former states stay.
    """
    state = store.child(f"{FOLDER}/{_name(step)}")

    def begin() -> dict[str, str]:
        # Of an earlier run of the same step: without its last file the state counts for nothing.
        state.delete(COMPLETE)
        records = {RUN: _put(state, RUN, json_bytes(run))}
        if best is not None:
            records[BEST] = _put(state, BEST, safetensors.torch.save(dict(best)))
        return records

    def complete() -> dict[str, str]:
        facts = {"zero_stage": zero_stage, "num_workers": world_size(), "architecture": architecture}
        state.write_json(COMPLETE, {"files": records} | facts)
        _prune(store, step, keep)
        return {}

    with scratch_folder() as folder:
        # First: what it refuses leaves no half of a state behind.
        _save_engine(engine, folder)
        records = _together(step, begin, only_first=True)
        records |= _together(step, lambda: _put_folder(state, folder))
    _together(step, complete, only_first=True)


def newest_state(
    store: Store, *, zero_stage: int, architecture: Mapping[str, Any], stream: TextIO | None = None
) -> ResumePoint | None:
    """Return the newest state whose files all hold, the same on every rank; None where there is none.

    Torn and corrupt ones are passed over, aloud. Raises ConfigError for one of another ZeRO stage, RefusedError for one
    of another model.
    """
    chosen: str | None = None
    if rank() == 0:
        names = _names(store)
        for name in reversed(names):
            fault = _fault(store.child(f"{FOLDER}/{name}"))
            if fault is None:
                chosen = name
                break
            print(f"train: passing over {FOLDER}/{name}: {fault}", file=stream or sys.stderr, flush=True)
        if names and chosen is None:
            print("train: no resumable state is whole: beginning anew", file=stream or sys.stderr, flush=True)
    chosen = broadcast_value(chosen)
    if chosen is None:
        return None
    state = store.child(f"{FOLDER}/{chosen}")
    complete = state.read_json(COMPLETE)
    _check_stage(complete["zero_stage"], zero_stage)
    _check_architecture(state, complete["architecture"], architecture)
    best = safetensors.torch.load(state.read_bytes(BEST)) if BEST in complete["files"] else None
    files = tuple(sorted(key for key in complete["files"] if key.startswith(_ENGINE_FILES)))
    return ResumePoint(chosen, state.read_json(RUN), best, files, complete["num_workers"])


def load_engine(store: Store, point: ResumePoint, engine: Engine) -> None:
    """Put an engine where the state left it. Every rank must call it."""
    state = store.child(f"{FOLDER}/{point.name}")
    with scratch_folder() as folder:
        for key in point.files:
            target = folder / key.removeprefix(_ENGINE_FILES)
            target.parent.mkdir(parents=True, exist_ok=True)
            with state.open(key) as reader, target.open("wb") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)
        engine.load(folder, num_workers=point.num_workers)


def delete_states(store: Store) -> None:
    """Delete all resumable states: the training they belong to is complete."""
    store.delete_tree(FOLDER)


def _together(step: int, write: Callable[[], dict[str, str]], *, only_first: bool = False) -> dict[str, str]:
    """Return what all ranks (or the first) wrote, on all of them.

    What one could not write all raise: raised by it alone, it would leave the others waiting.
    """
    written: dict[str, str] = {}
    error: StorageError | None = None
    try:
        written = write() if rank() == 0 or not only_first else {}
    except StorageError as caught:
        error = caught
    records: dict[str, str] = {}
    for part, failed in gather_values((written, error)):
        if failed is not None:
            raise UnsavedStateError(
                f"the resumable state of step {step} could not be written",
                got=f"{failed.message}: {failed.got}",
                expected=failed.expected,
                remedy=failed.remedy,
            )
        records |= part
    return records


def _save_engine(engine: Engine, folder: Path) -> None:
    try:
        engine.save(folder)
    # Torch says a full disk as either.
    except (OSError, RuntimeError) as error:
        raise StorageError(
            "the resumable state could not be written to this machine's temporary folder",
            got=f"{type(error).__name__}: {error}",
            expected=f"room for one state below {folder.parent}",
            remedy="make room there, or set TMPDIR; then run the same command: it goes on from the last state",
        ) from error


def _put_folder(state: Store, folder: Path) -> dict[str, str]:
    written = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        key = _ENGINE_FILES + path.relative_to(folder).as_posix()
        with path.open("rb") as file:
            written[key] = hashlib.file_digest(file, "sha256").hexdigest()
        state.put_file(key, path)
    return written


def _put(state: Store, key: str, data: bytes) -> str:
    state.write_bytes(key, data)
    return hashlib.sha256(data).hexdigest()


def _prune(store: Store, step: int, keep: int) -> None:
    """Delete all but the newest `keep` up to this step: later ones, and those without a last file, were passed over."""
    folder = store.child(FOLDER)
    whole = [name for name in _names(store) if name <= _name(step) and folder.exists(f"{name}/{COMPLETE}")]
    for name in set(_names(store)) - set(whole[-keep:]):
        folder.delete_tree(name)


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
        complete = state.read_json(COMPLETE)
        if not complete.keys() >= _FACTS:
            return f"{COMPLETE} lacks {', '.join(sorted(_FACTS - complete.keys()))}"
        if not any(key.startswith(_ENGINE_FILES) for key in complete["files"]):
            return "it holds no rank's engine"
        bad = [key for key, digest in complete["files"].items() if state.sha256(key) != digest]
    except StorageError:
        # The place is at fault and not the state: to pass over it would be to lose it.
        raise
    except (DataError, AttributeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{bad[0]} has another checksum" if bad else None


def _check_stage(found: int, zero_stage: int) -> None:
    if found == zero_stage:
        return
    raise ConfigError(
        "the training to go on with divided its optimiser state otherwise",
        got=f"train.zero_stage={zero_stage}",
        expected=f"train.zero_stage={found}, as it began (the number of workers may change)",
        remedy=f"--set train.zero_stage={found}, or begin anew with --overwrite",
    )


def _check_architecture(state: Store, found: Mapping[str, Any], architecture: Mapping[str, Any]) -> None:
    ours = json.loads(json.dumps(architecture))
    names = sorted(name for name in found.keys() | ours.keys() if found.get(name) != ours.get(name))
    if names:
        raise RefusedError(
            f"the state to go on from is of another model: {state.uri}",
            got=", ".join(f"{name}={found.get(name)!r}" for name in names),
            expected=", ".join(f"{name}={ours.get(name)!r}" for name in names),
            remedy="go on with the code, pairs and settings that began it, or begin anew with --overwrite",
        )
