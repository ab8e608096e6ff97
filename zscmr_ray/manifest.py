"""What a stage directory says of itself: `manifest.json`, written last, is what makes it complete (DESIGN 2).

Readers trust the manifest, never the listing. Hashes here are sha256 over canonical JSON (sorted keys, no spaces), so
that the same facts give the same hash on every machine. How a driver opens a directory to write: `claim.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from zscmr_ray.errors import DataError
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


TALLY = "tally_"
"""Counts of a shard by such a name are of something other than rows, and no directory's."""


class ShardRecord(BaseModel):
    """One unit of input that a complete stage has done: its part, what it was made of, and where its rows went.

    `fingerprint` changes when the shard does; `rejected` counts by code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    part: str
    fingerprint: str
    counts: dict[str, int]
    rejected: dict[str, int] = Field(default_factory=dict)


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
    shards: list[ShardRecord] = Field(default_factory=list)
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
