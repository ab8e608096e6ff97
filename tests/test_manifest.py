"""The manifest: complete or not, torn or whole, and the fingerprint over its parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from zscmr_ray.errors import DataError
from zscmr_ray.manifest import (
    MANIFEST,
    Manifest,
    StageKey,
    part_record,
    read_manifest,
    require_manifest,
)
from zscmr_ray.storage import Store


def _key() -> StageKey:
    return StageKey(stage="embed", config={"embed": {}}, input_fingerprint="f" * 64)


def test_missing_and_torn_manifests_are_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(DataError, match="run `zscmr embed`"):
        require_manifest(store, "embed")
    store.write_bytes(MANIFEST, b'{"key": 1}')
    with pytest.raises(DataError, match="unreadable manifest"):
        read_manifest(store)


def test_the_fingerprint_covers_every_part(tmp_path: Path) -> None:
    store, key = Store(tmp_path), _key()
    store.write_bytes("a", b"1")
    one = Manifest(key=key, config_hash=key.config_hash, parts=[part_record(store, "a")])
    store.write_bytes("a", b"2")
    two = Manifest(key=key, config_hash=key.config_hash, parts=[part_record(store, "a")])
    assert one.fingerprint != two.fingerprint
