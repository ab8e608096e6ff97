"""Folders with more than files in them: links to anywhere, pipes, sockets, and files that may not be read."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.data.readers.shards import codes, picture, read_all, records, write
from zscmr_ray.data.readers import list_shards, read_shard
from zscmr_ray.data.records import Columns, Record, Reject
from zscmr_ray.errors import DataError
from zscmr_ray.storage import Store


def pair(folder: Path, name: str) -> Path:
    """A caption for a picture that is still to come."""
    write(folder, {f"{name}.txt": f"caption of {name}"})
    return folder / f"{name}.png"


def test_links_to_files_are_followed_wherever_they_lead(tmp_path: Path) -> None:
    write(tmp_path / "blobs", {"abc": picture("blue")})
    inside = tmp_path / "input"
    pair(inside, "a").write_bytes(picture())
    pair(inside, "b").symlink_to(tmp_path / "blobs/abc")
    assert [row.image for row in records(read_all(inside))] == [picture(), picture("blue")]


def test_a_broken_and_a_circular_link_are_missing_pictures(tmp_path: Path) -> None:
    pair(tmp_path, "a").symlink_to("nowhere.png")
    pair(tmp_path, "b").symlink_to("b.png")
    pair(tmp_path, "c").write_bytes(picture())
    rows = read_all(tmp_path)
    assert codes(rows) == ["missing_image", "missing_image", "ok"]
    assert [row.key for row in rows] == ["a.png", "b.png", "c.png"]


@pytest.mark.timeout(60)
def test_a_pipe_and_a_socket_are_rejected_rows_and_nobody_waits_for_them(tmp_path: Path) -> None:
    os.mkfifo(pair(tmp_path, "a"))
    listener = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(tmp_path)  # the path of a socket may have 107 characters
    try:
        pair(tmp_path, "b")
        listener.bind("b.png")
    finally:
        os.chdir(here)
        listener.close()
    pair(tmp_path, "c").write_bytes(picture())
    assert codes(read_all(tmp_path)) == ["empty_image", "missing_image", "ok"]
    write(tmp_path / "m", {"m.csv": "image,caption\n../a.png,x\n../c.png,y\n"})
    store = Store(tmp_path)
    [spec] = list_shards(store.list("m"), "csv")
    assert codes(read_shard(spec, store.open, Columns())) == ["empty_image", "ok"]


def test_links_to_folders_are_not_followed_so_that_none_goes_round(tmp_path: Path) -> None:
    pair(tmp_path / "cat", "a").write_bytes(picture())
    (tmp_path / "cat/again").symlink_to(tmp_path)
    (tmp_path / "dog").symlink_to(tmp_path / "cat")
    assert [row.key for row in read_all(tmp_path)] == ["a.png"]


def test_a_broken_link_in_the_place_of_a_shard_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to("nowhere")
    with pytest.raises(DataError, match="no such file"):
        read_all(tmp_path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_file_that_may_not_be_read_is_an_error_and_no_rejected_row(tmp_path: Path, number: int) -> None:
    """The tests may run as root, whom no permission stops: the store's refusal is made here."""
    for name in "ab":
        pair(tmp_path, name).write_bytes(picture())
    store = Store(tmp_path)

    def open_file(key: str) -> BinaryIO:
        if key == "b.png":
            raise PermissionError(number, os.strerror(number), key)
        return store.open(key)

    [spec] = list_shards(store.list())
    rows: list[Record | Reject] = []
    with pytest.raises((DataError, PermissionError), match=r"b\.png"):
        rows.extend(read_shard(spec, open_file, Columns()))
    assert codes(rows) == ["ok"]


def test_a_path_of_a_manifest_may_go_through_a_link_but_not_upwards(tmp_path: Path) -> None:
    write(tmp_path / "blobs", {"x.png": picture()})
    write(
        tmp_path / "input",
        {"m.csv": "image,caption\nlinked/x.png,a\n../blobs/x.png,b\nlinked/../../blobs/x.png,c\n"},
    )
    (tmp_path / "input/linked").symlink_to(tmp_path / "blobs")
    assert codes(read_all(tmp_path / "input")) == ["ok", "bad_path", "bad_path"]
