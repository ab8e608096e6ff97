"""Opening a stage directory: one owner, refusals that say what differs, overwrite and the switch of a retry."""

from __future__ import annotations

from pathlib import Path

import pytest

from zscmr_ray.claim import UPDATE, Update, clear, open_stage
from zscmr_ray.errors import ConfigError, RefusedError
from zscmr_ray.lease import read_lease
from zscmr_ray.manifest import (
    MANIFEST,
    STAGE_MARK,
    Manifest,
    StageKey,
    part_record,
    read_manifest,
    require_manifest,
)
from zscmr_ray.storage import Store


def _key(*, input_fingerprint: str = "f" * 64, **config: object) -> StageKey:
    return StageKey(stage="embed", config={"embed": config}, input_fingerprint=input_fingerprint)


def _manifest(store: Store, key: StageKey, *names: str) -> Manifest:
    parts = [part_record(store, name, rows=3) for name in names]
    return Manifest(key=key, config_hash=key.config_hash, counts={"rows": 3 * len(parts)}, parts=parts)


def _complete(store: Store, key: StageKey, *names: str) -> Manifest:
    with open_stage(store, key) as claim:
        for name in names:
            store.write_bytes(name, name.encode())
        claim.finish(_manifest(store, key, *names))
    return require_manifest(store, "embed")


def test_a_complete_directory_is_found_again(tmp_path: Path) -> None:
    store, key = Store(tmp_path), _key(rows=1)
    for _ in range(2):
        with open_stage(store, key) as claim:
            assert claim.complete is None, "a begun one goes on"
    manifest = _complete(store, key, "image/part-1.parquet")
    with open_stage(store, key) as claim:
        assert claim.complete == manifest
        assert claim.lease is None, "nothing to do needs no lease"


@pytest.mark.parametrize("complete", [False, True])
def test_another_configuration_is_refused_with_the_difference(tmp_path: Path, complete: bool) -> None:
    store = Store(tmp_path)
    with open_stage(store, _key(rows=1)) as claim:
        if complete:
            claim.finish(_manifest(store, claim.key))
    for update in (None, Update.APPEND, Update.RETRY):
        with (
            pytest.raises(RefusedError, match=r"embed\.rows: 1 -> 2"),
            open_stage(store, _key(rows=2), update=update),
        ):
            pass
    store.write_bytes("old.parquet", b"x")
    with open_stage(store, _key(rows=2), overwrite=True) as claim:
        assert claim.complete is None
        assert not store.exists("old.parquet")
        assert read_manifest(store) is None


def test_another_input_is_refused_or_updated(tmp_path: Path) -> None:
    store, other = Store(tmp_path), _key(input_fingerprint="0" * 64)
    with open_stage(store, _key()):
        pass
    for update in (None, Update.APPEND, Update.RETRY):
        with pytest.raises(RefusedError, match="input: ffffffffffff -> 000000000000"):  # noqa: SIM117
            with open_stage(store, other, update=update):
                pass
    before = _complete(store, _key(), "part-1.parquet")
    with pytest.raises(RefusedError, match="--append if shards were added"), open_stage(store, other):
        pass
    with open_stage(store, other, update=Update.APPEND) as claim:
        assert (claim.complete, claim.before) == (None, before)
    assert read_manifest(store) == before, "an update that did nothing changed nothing"


def test_overwrite_and_update_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--overwrite --append"):  # noqa: SIM117
        with open_stage(Store(tmp_path), _key(), overwrite=True, update=Update.APPEND):
            pass


def test_clearing_keeps_the_lease_and_deletes_the_mark_last(tmp_path: Path) -> None:
    store = Store(tmp_path)
    _complete(store, _key(), "image/part-1.parquet", "part-2.parquet")
    clear(store)
    assert [info.key for info in store.list()] == ["_lease/00000001.json"]
    _complete(store, _key(), "part-2.parquet")
    note = read_lease(store)
    assert note is not None and (note.epoch, note.ended) == (2, True)


def prepare_retry(store: Store, key: StageKey) -> Manifest:
    """A complete directory of two parts with a rejected one, and a prepared state: one part new, no rejects."""
    _complete(store, key, "part-1.parquet", "part-2.parquet", "rejected/part-2.parquet")
    store.write_bytes(f"{UPDATE}/part-2.parquet", b"better")
    prepared = store.child(UPDATE)
    kept, new = part_record(store, "part-1.parquet", rows=3), part_record(prepared, "part-2.parquet", rows=4)
    return Manifest(key=key, config_hash=key.config_hash, parts=[kept, new])


def test_a_switch_replaces_parts_and_deletes_what_is_no_part_any_more(tmp_path: Path) -> None:
    store, key = Store(tmp_path), _key()
    manifest = prepare_retry(store, key)
    with open_stage(store, key, update=Update.RETRY) as claim:
        claim.switch(manifest)
    assert read_manifest(store) == manifest
    assert store.read_bytes("part-2.parquet") == b"better"
    assert [info.key for info in store.list() if not info.key.startswith("_")] == [
        MANIFEST, "part-1.parquet", "part-2.parquet",
    ]  # fmt: skip
    assert not store.exists(UPDATE)


@pytest.mark.parametrize("key", [_key(), _key(input_fingerprint="0" * 64)])
def test_a_switch_that_was_cut_short_is_finished_by_whoever_comes_next(tmp_path: Path, key: StageKey) -> None:
    store = Store(tmp_path)
    manifest = prepare_retry(store, _key()).model_copy(update={"key": key})
    # The kill came between the old manifest and the new one.
    store.write_json(f"{UPDATE}/{MANIFEST}", manifest.model_dump())
    store.delete(MANIFEST)
    store.write_bytes("part-2.parquet", b"better")
    with open_stage(store, key) as claim:
        assert claim.complete == manifest
    assert not store.exists(UPDATE) and not store.exists("rejected/part-2.parquet")
    assert store.read_json(STAGE_MARK) == key.model_dump()
