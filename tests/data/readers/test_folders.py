"""Folders of images: sidecar captions, class folders, and what stands alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.readers.shards import codes, picture, read_all, records, write
from zscmr_ray.data.readers import list_shards
from zscmr_ray.data.records import Columns
from zscmr_ray.errors import DataError
from zscmr_ray.storage import Store


def test_sidecar_texts(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "b.png": picture("blue"),
            "b.txt": "one\ntwo",
            "a.jpg": b"1",
            "a.jpg.txt": "x",
            "sub/c.PNG": picture(),
            "sub/c.txt": "c",
        },
    )
    rows = records(read_all(tmp_path))
    assert [(r.key, r.offset, r.captions) for r in rows] == [
        ("a.jpg", 0, ("x",)),
        ("b.png", 1, ("one", "two")),
        ("c.PNG", 0, ("c",)),
    ]
    assert [spec.key for spec in list_shards(Store(tmp_path).list())] == [".", "sub"]
    assert rows[1].image == picture("blue")


def test_what_stands_alone_is_rejected(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"a.png": picture(), "b.txt": "b", "c.png": picture(), "c.txt": " ", "d.png": b"", "d.txt": "d"},
    )
    write(tmp_path, {"e.png": picture(), "e.txt": b"\xff", "f.png": picture(), "f.txt": "ok"})
    rows = read_all(tmp_path)
    assert codes(rows) == [
        "missing_caption",
        "missing_image",
        "empty_caption",
        "empty_image",
        "bad_text_encoding",
        "ok",
    ]


def test_images_of_one_stem_share_the_sidecar(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(), "a.webp": b"1", "a.txt": "x"})
    assert [(r.key, r.captions) for r in records(read_all(tmp_path))] == [
        ("a.png", ("x",)),
        ("a.webp", ("x",)),
    ]


def test_a_folder_per_class(tmp_path: Path) -> None:
    write(
        tmp_path, {f"{part}/{name}/1.png": picture() for part in ("train", "test") for name in ("cat", "dog")}
    )
    rows = records(read_all(tmp_path, needs={"image"}))
    assert [(r.labels, r.partition) for r in rows] == [
        (("cat",), "test"),
        (("dog",), "test"),
        (("cat",), "train"),
        (("dog",), "train"),
    ]
    bare = records(read_all(tmp_path, Columns(label="-", partition="-"), needs={"image"}))
    assert all(r.labels == () and r.partition is None for r in bare)


def test_a_folder_per_class_with_sidecars_has_both(tmp_path: Path) -> None:
    write(
        tmp_path, {"cat/1.png": picture(), "cat/1.txt": "a cat", "dog/1.png": picture(), "dog/1.txt": "a dog"}
    )
    rows = records(read_all(tmp_path, format_name="class_folder"))
    assert [(r.labels, r.captions) for r in rows] == [(("cat",), ("a cat",)), (("dog",), ("a dog",))]
    assert [spec.format for spec in list_shards(Store(tmp_path).list())] == ["folder", "folder"]


def test_images_outside_the_class_folders_are_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"cat/1.png": picture(), "2.png": picture()})
    with pytest.raises(DataError, match=r"outside any class folder.*2\.png"):
        read_all(tmp_path, format_name="class_folder")


def test_keep(tmp_path: Path) -> None:
    write(tmp_path, {f"{i}.png": picture() for i in range(4)})
    rows = records(read_all(tmp_path, keep=frozenset({2}), needs={"image"}, with_images=False))
    assert [(r.key, r.offset, r.image) for r in rows] == [("2.png", 2, None)]


def test_the_version_of_a_folder_changes_with_its_contents(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": picture(), "a.txt": "x"})
    [before] = list_shards(Store(tmp_path).list())
    write(tmp_path, {"a.txt": "xy"})
    [after] = list_shards(Store(tmp_path).list())
    assert before.key == after.key and before.version != after.version
