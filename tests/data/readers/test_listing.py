"""Which files are shards: formats by extension, mixtures, and nothing at all."""

from __future__ import annotations

import pytest

from zscmr_ray.data.readers import list_shards
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.storage import FileInfo


def shards(*keys: str, format_name: str = "auto") -> list[tuple[str, str]]:
    return [(s.key, s.format) for s in list_shards((FileInfo(key, 1, "v") for key in keys), format_name)]


def test_order_does_not_depend_on_the_listing() -> None:
    assert shards("b/1.tar", "a.tar", "b/0.tgz") == [
        ("a.tar", "webdataset"),
        ("b/0.tgz", "webdataset"),
        ("b/1.tar", "webdataset"),
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("m.csv", "img/a.jpg", "img/b.jpg"), [("m.csv", "csv")]),
        (("a.jsonl", "b.ndjson", "x/a.png"), [("a.jsonl", "jsonl"), ("b.ndjson", "jsonl")]),
        (("0.tar", "0.parquet", "0_stats.json"), [("0.tar", "webdataset")]),
        (("a.PARQUET", "notes.md"), [("a.PARQUET", "parquet")]),
        (("a.jpg", "a.txt"), [(".", "folder")]),
        (("a.jpg", "b/c.jpg"), [(".", "folder"), ("b", "folder")]),
        (("a/1.jpg", "b/1.jpg"), [("a", "class_folder"), ("b", "class_folder")]),
        (("a/1.jpg", "a/1.txt", "b/1.jpg"), [("a", "folder"), ("b", "folder")]),
        ((".git/a.tar", "__MACOSX/._b.tar", "c.tar"), [("c.tar", "webdataset")]),
    ],
)
def test_auto(keys: tuple[str, ...], expected: list[tuple[str, str]]) -> None:
    assert shards(*keys) == expected


def test_a_named_format_takes_its_own_files_only() -> None:
    assert shards("a.tar", "b.parquet", format_name="parquet") == [("b.parquet", "parquet")]


def test_mixed_formats_are_an_error_with_the_setting() -> None:
    with pytest.raises(
        DataError, match=r"mixes formats.*1 webdataset, 2 parquet.*--set data\.format=webdataset"
    ):
        shards("0.tar", "0.parquet", "other.parquet")


def test_nothing_there() -> None:
    with pytest.raises(DataError, match="the input is empty"):
        shards()


def test_nothing_known_says_what_was_found() -> None:
    with pytest.raises(DataError, match=r"3 files: 2 \.zip, 1 \(no extension\)"):
        shards("a.zip", "b.zip", "README")
    with pytest.raises(DataError, match="parquet shards"):
        shards("a.tar", format_name="parquet")


def test_an_unknown_format_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="webdataset"):
        shards("a.tar", format_name="lmdb")


def test_a_file_name_that_utf8_cannot_hold_is_an_error() -> None:
    with pytest.raises(DataError, match="not valid Unicode"):
        shards("caf\udce9/a.jpg")
    assert shards("café/a.tar") == [("café/a.tar", "webdataset")]
