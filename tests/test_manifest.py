"""The law of stage directories: one owner, manifest last, refusals that say what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.manifest import (
    MANIFEST,
    Manifest,
    StageKey,
    open_stage,
    part_record,
    read_manifest,
    require_manifest,
    write_manifest,
)
from zscmr_ray.storage import Store


def _key(**config: object) -> StageKey:
    return StageKey(stage="embed", config={"embed": config}, input_fingerprint="f" * 64)


def test_a_complete_directory_is_found_again(tmp_path: Path) -> None:
    store, key = Store(tmp_path), _key(rows=1)
    assert open_stage(store, key) is None
    assert open_stage(store, key) is None, "a begun one goes on"
    store.write_bytes("image/part-1.parquet", b"x")
    part = part_record(store, "image/part-1.parquet", rows=3)
    manifest = Manifest(key=key, config_hash=key.config_hash, counts={"rows": 3}, parts=[part])
    write_manifest(store, manifest)
    assert open_stage(store, key) == manifest
    assert require_manifest(store, "embed").fingerprint == manifest.fingerprint


@pytest.mark.parametrize("complete", [False, True])
def test_another_configuration_is_refused_with_the_difference(tmp_path: Path, complete: bool) -> None:
    store = Store(tmp_path)
    open_stage(store, _key(rows=1))
    if complete:
        write_manifest(store, Manifest(key=_key(rows=1), config_hash=""))
    with pytest.raises(RefusedError, match=r"embed\.rows: 1 -> 2"):
        open_stage(store, _key(rows=2))
    store.write_bytes("old.parquet", b"x")
    assert open_stage(store, _key(rows=2), overwrite=True) is None
    assert not store.exists("old.parquet")
    assert read_manifest(store) is None


def test_another_input_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    open_stage(store, _key())
    with pytest.raises(RefusedError, match="input: ffffffffffff -> 000000000000"):
        open_stage(store, _key().model_copy(update={"input_fingerprint": "0" * 64}))


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
