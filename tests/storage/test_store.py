"""Storage on a local disk and on a real S3 server: the same vocabulary, the same answers."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.storage import Store


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(tmp_path / "store")
    return Store(f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}")


def test_round_trip_and_listing(store: Store) -> None:
    store.write_bytes("b/two.bin", b"22")
    store.write_json("a.json", {"x": [1, "ü"]})
    assert store.read_bytes("b/two.bin") == b"22"
    assert store.read_json("a.json") == {"x": [1, "ü"]}
    assert [(info.key, info.size_bytes) for info in store.list()] == [
        ("a.json", store.info("a.json").size_bytes),
        ("b/two.bin", 2),
    ]
    assert [info.key for info in store.list("b")] == ["b/two.bin"]
    assert store.list("nowhere") == []
    assert store.exists("b/two.bin") and store.exists("b") and not store.exists("c")
    with store.open("b/two.bin") as file:
        assert file.read() == b"22"


def test_a_version_changes_with_the_content(store: Store) -> None:
    store.write_bytes("x", b"1")
    before = store.info("x").version
    store.write_bytes("x", b"2")
    assert store.info("x").version != before
    assert store.sha256("x") == "d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35"


def test_a_write_that_fails_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError, match="half way"), store.open_write("part") as file:
        file.write(b"half")
        raise RuntimeError("half way")
    assert not store.exists("part")
    assert store.list() == []


def test_delete_and_local_copy(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"abc")
    store.put_file("d/x", source)
    with store.local_copy("d/x") as path:
        assert path.read_bytes() == b"abc"
    store.delete("d/x")
    store.delete("d/x")
    assert not store.exists("d/x")
    store.write_bytes("d/y", b"1")
    store.child("d").delete_tree()
    assert store.list() == []


def test_missing_and_torn_objects_are_said(store: Store) -> None:
    with pytest.raises(DataError, match="no such file"):
        store.read_bytes("nowhere")
    store.write_bytes("torn.json", b'{"a": ')
    with pytest.raises(DataError, match="not valid JSON"):
        store.read_json("torn.json")


def test_keys_stay_inside(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in ("../x", "a/../../x", "/etc/passwd"):
        with pytest.raises(DataError, match="inside its store"):
            store.read_bytes(key)


def test_uris(tmp_path: Path) -> None:
    assert Store(f"file://{tmp_path}").uri == str(tmp_path)
    assert Store("s3://bucket/a").child("b").path("c") == "bucket/a/b/c"
    assert pickle.loads(pickle.dumps(Store("s3://bucket/a"))).uri == "s3://bucket/a"
    with pytest.raises(ConfigError, match="scheme"):
        Store("gs://bucket")
    with pytest.raises(ConfigError, match="credentials"):
        Store("s3://key:secret@bucket/x")
