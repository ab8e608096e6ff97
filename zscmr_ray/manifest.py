"""The law of stage directories: one owner, one configuration, and a manifest written last (DESIGN 2).

`_stage.json` is written first and says whose the directory is; `manifest.json` is written last and says that it is
complete. Readers trust the manifest, never the listing. Hashes here are sha256 over canonical JSON (sorted keys, no
spaces), so that the same facts give the same hash on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.schema import SCHEMA_VERSION
from zscmr_ray.storage import FileInfo, Store

MANIFEST = "manifest.json"
STAGE_MARK = "_stage.json"


class PartRecord(BaseModel):
    """One data file of a complete stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    rows: int = 0
    size_bytes: int
    sha256: str


class StageKey(BaseModel):
    """What a stage's output depends on: equal keys mean equal output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    zscmr_schema: int = SCHEMA_VERSION
    config: dict[str, Any]
    input_fingerprint: str

    @property
    def config_hash(self) -> str:
        """Hash of the output-affecting settings: 64 hex characters."""
        return hash_json(self.config)


class Manifest(BaseModel):
    """A complete stage directory: what made it, how much is in it, and every file with its checksum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: StageKey
    config_hash: str
    counts: dict[str, int] = Field(default_factory=dict)
    parts: list[PartRecord] = Field(default_factory=list)
    info: dict[str, Any] = Field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """What a later stage names as its input: the hash of the key and of every part's checksum."""
        return hash_json([self.key.model_dump(), [(part.name, part.sha256) for part in self.parts]])


def hash_json(value: object) -> str:
    """The sha256 of canonical JSON, in hex.

    >>> hash_json({"b": 1, "a": [1.5]}) == hash_json({"a": [1.5], "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def input_fingerprint(files: Iterable[FileInfo]) -> str:
    """Fingerprint of raw input: sorted (relative key, size, ETag or mtime)."""
    return hash_json([[info.key, info.size_bytes, info.version] for info in sorted(files)])


def open_stage(store: Store, key: StageKey, *, overwrite: bool = False) -> Manifest | None:
    """Claim a stage directory: its manifest when the same work is already complete, else None and it is ours to fill.

    Raises RefusedError, listing what differs, when the directory was begun with another configuration or input;
    `overwrite=True` clears it instead.
    """
    begun = _read_key(store)
    if begun is not None and begun != key:
        if not overwrite:
            raise RefusedError(
                f"{store.uri} holds the output of another run of {begun.stage}",
                got="; ".join(_differences(begun, key)),
                expected="the same settings and input as the run that began it",
                remedy="--overwrite to replace it, or another --run directory",
            )
        store.delete_tree()
        begun = None
    complete = read_manifest(store) if begun is not None else None
    if complete is not None and not overwrite:
        return complete
    if complete is not None:
        store.delete_tree()
    store.write_json(STAGE_MARK, key.model_dump())
    return None


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Complete a stage directory. Nothing in it may change afterwards."""
    store.write_json(MANIFEST, manifest.model_dump())


def read_manifest(store: Store) -> Manifest | None:
    """The directory's manifest, or None while it is not complete; raises DataError when it is unreadable."""
    if not store.exists(MANIFEST):
        return None
    try:
        return Manifest.model_validate(store.read_json(MANIFEST))
    except ValueError as error:
        raise DataError(
            "unreadable manifest", got=f"{store.uri}/{MANIFEST}", remedy="rerun with --overwrite"
        ) from error


def require_manifest(store: Store, stage: str) -> Manifest:
    """The manifest of a stage that must be complete; raises DataError naming the verb that makes it."""
    manifest = read_manifest(store)
    if manifest is None:
        raise DataError(
            f"{stage} is not complete",
            got=f"no {MANIFEST} in {store.uri}",
            expected=f"the finished output of `zscmr {stage}`",
            remedy=f"run `zscmr {stage}` (a begun one goes on where it stopped)",
        )
    return manifest


def part_record(store: Store, name: str, *, rows: int = 0) -> PartRecord:
    """Describe one written file by reading it back."""
    return PartRecord(name=name, rows=rows, size_bytes=store.info(name).size_bytes, sha256=store.sha256(name))


def _read_key(store: Store) -> StageKey | None:
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
