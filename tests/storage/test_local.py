"""A local disk that is full, read-only or shared with a killed writer."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from zscmr_ray.errors import DataError
from zscmr_ray.storage import Store


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file of this process may grow beyond this many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_bytes = 100_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    yield limit_bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, small_files: int) -> None:
    store = Store(tmp_path / "out")
    store.write_bytes("a", b"before")
    with pytest.raises(DataError, match=r"the disk is full; got: .*a: File too large") as caught:
        store.write_bytes("a", b"x" * 2 * small_files)
    assert "same command" in str(caught.value.remedy)
    assert store.read_bytes("a") == b"before"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_errors_of_the_disk_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    store = Store(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DataError, match=os.strerror(number)):
        store.write_bytes("a", b"x")
    with pytest.raises(DataError, match=os.strerror(number)):
        store.create_bytes("a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), Store(tmp_path).open_write("a"):
        raise ConnectionResetError(errno.ECONNRESET, "not of the disk")


@pytest.fixture
def closed_directory(tmp_path: Path) -> Iterator[Path]:
    """A directory that this process may enter but not change, root included (it becomes nobody meanwhile)."""
    with tempfile.TemporaryDirectory() as folder:
        closed = Path(folder) / "closed"
        closed.mkdir()
        (closed / "secret").write_bytes(b"1")
        (closed / "secret").chmod(0)
        (closed / "locked").mkdir(mode=0)
        Path(folder).chmod(0o755)
        closed.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield closed
        os.seteuid(user)
        closed.chmod(0o755)
        (closed / "locked").chmod(0o755)


def test_an_unwritable_directory_is_said(closed_directory: Path) -> None:
    store = Store(closed_directory)
    for write in (
        lambda: store.write_bytes("a", b"x"),
        lambda: store.create_bytes("a", b"x"),
        lambda: store.delete("secret"),
    ):
        with pytest.raises(DataError, match=r"cannot write here; got: .*: Permission denied"):
            write()


def test_what_may_not_be_read_is_said_and_never_left_out(closed_directory: Path) -> None:
    store = Store(closed_directory)
    for read in (
        lambda: store.read_bytes("secret"),
        lambda: store.open("secret"),
        lambda: store.info("locked/a"),
    ):
        with pytest.raises(DataError, match=r"cannot read this; got: .*: Permission denied"):
            read()
    with pytest.raises(DataError, match="locked: Permission denied"):
        store.list()


def test_a_file_where_the_directory_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(DataError, match="cannot write here"):
        Store(tmp_path / "out").write_bytes("a/b", b"x")


def test_creation_is_exclusive(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.create_bytes("d/mine", b"1")
    assert not store.create_bytes("d/mine", b"2")
    assert store.read_bytes("d/mine") == b"1"
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["mine"]


def test_what_a_killed_writer_left_is_not_listed_and_can_be_swept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_bytes("image/a", b"1")
    (tmp_path / "image/.tmp-b-123").write_bytes(b"half")
    assert [info.key for info in store.list()] == ["image/a"]
    store.sweep()
    assert [path.name for path in (tmp_path / "image").iterdir()] == ["a"]


def test_a_tree_is_deleted_but_not_what_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/keep").write_bytes(b"1")
    store = Store(tmp_path / "out")
    store.write_bytes("a/b/c", b"1")
    (tmp_path / "out/a/link").symlink_to(tmp_path / "elsewhere")
    store.delete_tree()
    store.delete_tree()
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "elsewhere/keep").exists()
