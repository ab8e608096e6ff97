"""How a driver opens a stage directory: one owner, one configuration, one driver at a time (DESIGN 2).

`_stage.json` is written first and says whose the directory is, `manifest.json` last and says that it is complete; in
between the driver holds the lease (`lease.py`), and whatever it makes visible is checked against that.

A complete directory may be updated. Appended parts have new names: the old manifest stays valid until the new one
replaces it. A retry makes parts again whose names stay: it is prepared below `_update/` and then switched to, and
between the old manifest and the new one a reader sees none. Which shards these are: `stages/plane/update.py`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from zscmr_ray.errors import ConfigError, RefusedError
from zscmr_ray.lease import LEASES, Lease, take_lease
from zscmr_ray.manifest import MANIFEST, STAGE_MARK, Manifest, StageKey, read_manifest, write_manifest
from zscmr_ray.storage import Store

# Where a retry is prepared; from the moment its manifest is there, it is decided.
UPDATE = "_update"
# Stages whose shards are independent; the others can only be done anew.
_UPDATABLE = {
    "preprocess": [
        "--append if shards were added",
        "--retry-rejected if shards with rejected rows were repaired",
    ],
    "embed": ["--append if shards were added", "--retry-rejected if shards with rejected rows were repaired"],
    "index": ["--append if shards were embedded since"],
}
_FILES_AT_ONCE = 16
_COPY_BYTES = 1 << 20


class Update(StrEnum):
    """What to do with a complete directory besides returning it."""

    APPEND = "append"
    RETRY = "retry-rejected"
    DELETE = "delete"
    COMPACT = "compact"


# The same work again is nothing to do, but for these: what they do is not in the directory's key.
_IN_PLACE = frozenset({Update.RETRY, Update.DELETE, Update.COMPACT})


@dataclass(frozen=True)
class Claim:
    """A directory that was opened.

    `complete` is its manifest when there is nothing to do; else `lease` is held, and `before` is the complete state
    that an update starts from.
    """

    store: Store
    key: StageKey
    complete: Manifest | None = None
    lease: Lease | None = None
    before: Manifest | None = None

    def finish(self, manifest: Manifest) -> None:
        """Complete the directory. Raises RefusedError when another driver has taken it over."""
        assert self.lease is not None, "only a driver finishes a directory"
        self.lease.fence.check()
        write_manifest(self.store, manifest)
        if self.before is not None:
            # Read where there is no manifest only; a kill before this line harms nobody.
            self.store.write_json(STAGE_MARK, manifest.key.model_dump())

    def switch(self, manifest: Manifest) -> None:
        """Replace the directory's state by the one prepared below `_update/`; raises RefusedError as `finish` does."""
        assert self.lease is not None, "only a driver finishes a directory"
        self.lease.fence.check()
        self.store.write_json(f"{UPDATE}/{MANIFEST}", manifest.model_dump())
        _switch(self.store, self.lease)


@contextlib.contextmanager
def open_stage(
    store: Store, key: StageKey, *, overwrite: bool = False, update: Update | None = None
) -> Iterator[Claim]:
    """Open a stage directory: as it is when the same work is complete, else with the lease, ours to fill.

    Raises RefusedError, listing what differs, when it belongs to another configuration or input (`overwrite` clears
    it instead), and, naming the holder, when another driver is at work there.
    """
    if overwrite and update is not None:
        raise ConfigError(
            "--overwrite begins anew",
            got=f"--overwrite --{update}",
            expected="one of the two",
            remedy="leave one out",
        )
    # A switch that was cut short belongs to its new state already: it is finished first, under the lease.
    if not overwrite and not store.exists(f"{UPDATE}/{MANIFEST}"):
        complete = _admit(store, key, update)
        if complete is not None and complete.key == key and update not in _IN_PLACE:
            yield Claim(store, key, complete=complete)
            return
    with take_lease(store, key.stage, **({"update": str(update)} if update is not None else {})) as lease:
        store.sweep()
        if overwrite:
            clear(store)
        elif store.exists(f"{UPDATE}/{MANIFEST}"):
            _switch(store, lease)
        # Looked at again: from here on nobody else changes it.
        before = _admit(store, key, update)
        if before is not None and before.key == key and update not in _IN_PLACE:
            yield Claim(store, key, complete=before)
            return
        if before is None:
            store.write_json(STAGE_MARK, key.model_dump())
        yield Claim(store, key, lease=lease, before=before)


def clear(store: Store) -> None:
    """Empty a directory but for its lease, in an order that a kill cannot turn into a wrong state.

    The manifests go first, so that nothing counts as complete, and the owner's mark last, so that what a killed
    deletion leaves is never taken for a directory without an owner.
    """
    for key in (MANIFEST, f"{UPDATE}/{MANIFEST}"):
        store.delete(key)
    keys = [info.key for info in store.list()]
    _for_all(store.delete, [key for key in keys if key != STAGE_MARK and not key.startswith(f"{LEASES}/")])
    store.delete(STAGE_MARK)
    store.sweep()


def _admit(store: Store, key: StageKey, update: Update | None) -> Manifest | None:
    """The directory's manifest if it is complete; raises RefusedError when this run may not go on in it."""
    complete = read_manifest(store)
    begun = complete.key if complete is not None else _read_mark(store)
    if begun is None or begun == key:
        return complete
    is_other_input = begun.model_copy(update={"input_fingerprint": key.input_fingerprint}) == key
    if update is not None and is_other_input and complete is not None:
        return complete
    remedies = ["--overwrite to replace it", "another --run directory"]
    if is_other_input and key.stage in _UPDATABLE:
        remedies[:0] = (
            _UPDATABLE[key.stage]
            if complete is not None
            else [
                f"finish the run that began it before --{update}" if update else "its own input to finish it"
            ]
        )
    raise RefusedError(
        f"{store.uri} holds the output of another run of {begun.stage}",
        got="; ".join(_differences(begun, key)),
        expected="the same settings and input as the run that began it",
        remedy=", or ".join(remedies),
    )


def _switch(store: Store, lease: Lease) -> None:
    """Make what is prepared below `_update/` the directory's state; after a kill it is done again from the start."""
    prepared = store.child(UPDATE)
    manifest = Manifest.model_validate(prepared.read_json(MANIFEST))
    wanted = {part.name for part in manifest.parts}
    if read_manifest(store) != manifest:
        lease.fence.check()
        store.delete(MANIFEST)
        _for_all(
            lambda key: _copy(prepared, store, key),
            [info.key for info in prepared.list() if info.key in wanted],
        )
        # A shard whose rows are all good now has no rejected part any more.
        parts = [info.key for info in store.list() if _is_part(info.key)]
        _for_all(store.delete, [key for key in parts if key not in wanted])
        lease.fence.check()
        write_manifest(store, manifest)
        store.write_json(STAGE_MARK, manifest.key.model_dump())
    # The prepared manifest last: as long as it is there, whoever comes next gets here again.
    _for_all(prepared.delete, [info.key for info in prepared.list() if info.key != MANIFEST])
    prepared.delete_tree()


def _is_part(key: str) -> bool:
    return not key.startswith("_") and PurePosixPath(key).name.startswith("part-")


def _copy(source: Store, target: Store, key: str) -> None:
    with source.open(key) as reader, target.open_write(key) as writer:
        shutil.copyfileobj(reader, writer, _COPY_BYTES)


def _for_all(act: Callable[[str], None], keys: list[str]) -> None:
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for _ in pool.map(act, keys):
            pass


def _read_mark(store: Store) -> StageKey | None:
    if not store.exists(STAGE_MARK):
        return None
    return StageKey.model_validate(store.read_json(STAGE_MARK))


def _differences(old: StageKey, new: StageKey) -> list[str]:
    found = [f"{name}: {a} -> {b}" for name, a, b in _flat_changes(old.config, new.config)]
    if old.stage != new.stage:
        found.insert(0, f"stage: {old.stage} -> {new.stage}")
    if old.zscmr_schema != new.zscmr_schema:
        found.append(f"zscmr_schema: {old.zscmr_schema} -> {new.zscmr_schema}")
    if old.input_fingerprint != new.input_fingerprint:
        found.append(f"input: {old.input_fingerprint[:12]} -> {new.input_fingerprint[:12]}")
    return found


def _flat_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterable[tuple[str, object, object]]:
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _flat_changes(a, b, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", a, b
