"""WebDataset shards: grouping, keys, captions, labels, and the archives that must be refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.readers.shards import codes, picture, read_all, read_tar, records, sample, tar_bytes, write
from zscmr_ray.data.readers.webdataset import split_name
from zscmr_ray.data.records import Columns, Reject
from zscmr_ray.errors import DataError


def json_bytes(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_keys_keep_directories_and_lose_everything_after_the_first_dot() -> None:
    rows = records(read_tar(tar_bytes([*sample("./cats/001", "one"), *sample("dogs/001", "two")])))
    assert [(r.key, r.offset, r.captions) for r in rows] == [
        ("cats/001", 0, ("one",)),
        ("dogs/001", 1, ("two",)),
    ]
    assert rows[0].image == picture() and rows[0].item_id("a.tar") == "a.tar#cats/001"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", "jpg")),
        ("a.b/c.seg.PNG", ("a.b/c", "seg.png")),
        ("README", None),
        ("x/.DS_Store", None),
        ("a.", None),
    ],
)
def test_split_name(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected


def test_lines_of_the_text_member_are_captions() -> None:
    [row] = records(read_tar(tar_bytes(sample("a", "\ufefffirst\r\n\n  second \n"))))
    assert row.captions == ("first", "second")


def test_text_wins_over_json_and_json_serves_where_there_is_no_text() -> None:
    meta = json_bytes(captions=["x", "y"], split="val", labels=["cat", "dog"])
    both = [*sample("a", "from text"), ("a.json", meta)]
    rows = records(read_tar(tar_bytes([*both, ("b.jpg", b"1"), ("b.json", meta)])))
    assert [r.captions for r in rows] == [("from text",), ("x", "y")]
    assert rows[0].partition == "val" and rows[0].labels == ("cat", "dog")


def test_named_columns_are_members_or_json_fields() -> None:
    members = [*sample("a", "no"), ("a.json", json_bytes(alt="yes", sku=7)), ("a.kind", b"shoe|red")]
    columns = Columns(id="sku", caption="alt", label="kind", label_separator="|")
    [row] = records(read_tar(tar_bytes(members), columns))
    assert (row.id, row.captions, row.labels) == ("7", ("yes",), ("shoe", "red"))


def test_a_named_column_that_no_sample_has_is_an_error_with_the_remedy() -> None:
    with pytest.raises(DataError, match=r"'titel'.*png.*--set data\.columns\.caption"):
        read_tar(tar_bytes([*sample("a"), *sample("b")]), Columns(caption="titel"))


def test_class_member_and_columns_switched_off() -> None:
    members = [*sample("a"), ("a.cls", b"cat\n"), ("a.json", json_bytes(split="weekend"))]
    [reject] = read_tar(tar_bytes(members))
    assert isinstance(reject, Reject) and "data.columns.partition=-" in reject.reason
    [row] = records(read_tar(tar_bytes(members), Columns(partition="-")))
    assert row.labels == ("cat",) and row.partition is None
    [row] = records(read_tar(tar_bytes(members), Columns(partition="-", label="-")))
    assert row.labels == ()


def test_an_unsorted_archive_names_key_and_both_places() -> None:
    members = [("a.png", picture()), ("b.png", picture()), ("a.txt", b"a"), ("b.txt", b"b")]
    with pytest.raises(DataError, match=r"'a' are not together.*'a\.txt' at byte \d+.*byte 0") as caught:
        read_tar(tar_bytes(members))
    assert "a.tar" in str(caught.value) and caught.value.remedy


def test_a_key_twice_in_a_row_is_a_duplicate_row() -> None:
    rows = read_tar(tar_bytes([*sample("a", "one"), *sample("a", "two"), *sample("b", "three")]))
    assert codes(rows) == ["ok", "duplicate_id", "ok"]
    assert [r.offset for r in rows] == [0, 1, 2]


def test_a_truncated_archive_is_an_error() -> None:
    archive = tar_bytes([*sample("a"), *sample("b")])
    with pytest.raises(DataError, match=r"shard a\.tar is truncated"):
        read_tar(archive[:2500])


def test_faulty_samples_are_rejected_and_the_others_read() -> None:
    members = [
        *sample("ok"),
        ("noimage.txt", b"text"),
        ("zero.png", b""),
        ("zero.txt", b"text"),
        ("nocaption.png", picture()),
        *sample("blank", " \n "),
        ("latin.png", picture()),
        ("latin.txt", "café".encode("latin-1")),
        *sample("badjson"),
        ("badjson.json", b"{"),
        *sample("listjson"),
        ("listjson.json", b"[1]"),
        *sample("surrogate"),
        ("surrogate.json", b'{"label": "\\ud83d"}'),
        *sample("last"),
    ]
    rows = read_tar(tar_bytes(members))
    assert codes(rows) == [
        "ok",
        "missing_image",
        "empty_image",
        "missing_caption",
        "empty_caption",
        "bad_text_encoding",
        "unreadable_record",
        "unreadable_record",
        "bad_text_encoding",
        "ok",
    ]
    assert [row.offset for row in rows] == list(range(10))
    assert isinstance(rows[1], Reject) and (rows[1].shard_key, rows[1].key) == ("a.tar", "noimage")


def test_a_key_that_is_not_utf8_is_rejected_printably() -> None:
    [reject] = read_tar(tar_bytes(sample("caf\udce9")))
    assert isinstance(reject, Reject) and reject.code == "bad_id"
    assert reject.key is not None and reject.key.encode()


def test_two_images_of_one_sample_are_ambiguous() -> None:
    members = [("a.jpg", b"1"), ("a.png", b"2"), ("a.txt", b"x")]
    with pytest.raises(DataError, match=r"ambiguous.*jpg, png.*data\.columns\.image=jpg"):
        read_tar(tar_bytes(members))
    [row] = records(read_tar(tar_bytes(members), Columns(image="png")))
    assert row.image == b"2"


def test_an_extension_of_two_parts_serves_when_it_is_the_only_image() -> None:
    [row] = records(read_tar(tar_bytes([("a.v1.jpg", b"1"), ("a.txt", b"x")])))
    assert (row.key, row.image) == ("a", b"1")


def test_ambiguous_json_fields_are_an_error() -> None:
    members = [("a.png", picture()), ("a.json", json_bytes(title="x", description="y"))]
    with pytest.raises(DataError, match=r"caption is ambiguous.*title, description"):
        read_tar(tar_bytes(members))


def test_gzipped_archives_and_their_damage(tmp_path: Path) -> None:
    data = gzip.compress(tar_bytes([*sample("a"), *sample("b", image=bytes(range(256)) * 40)]))
    write(tmp_path, {"x.tar.gz": data, "y.tgz": data})
    assert len(records(read_all(tmp_path))) == 4
    (tmp_path / "y.tgz").write_bytes(data[:-30])
    with pytest.raises(DataError, match=r"shard y\.tgz"):
        read_all(tmp_path)


def test_keep_reads_some_offsets_and_without_images_none_is_read(tmp_path: Path) -> None:
    write(tmp_path, {"a.tar": tar_bytes([m for key in "abcd" for m in sample(key, key)])})
    kept = records(read_all(tmp_path, keep=frozenset({1, 3})))
    assert [(r.key, r.offset) for r in kept] == [("b", 1), ("d", 3)]
    assert read_all(tmp_path, keep=frozenset()) == []
    bare = records(read_all(tmp_path, with_images=False))
    assert [r.captions for r in bare] == [("a",), ("b",), ("c",), ("d",)]
    assert all(r.image is None for r in bare)


def test_an_image_only_corpus(tmp_path: Path) -> None:
    write(tmp_path, {"a.tar": tar_bytes([("a.JPEG", b"1"), ("b.JPEG", b"2"), ("b.txt", b" ")])})
    assert codes(read_all(tmp_path)) == ["missing_caption", "empty_caption"]
    assert [r.captions for r in records(read_all(tmp_path, needs={"image"}))] == [(), ()]


def test_an_empty_archive_has_no_rows_and_one_of_loose_members_is_an_error() -> None:
    assert read_tar(tar_bytes([])) == []
    with pytest.raises(DataError, match="no samples"):
        read_tar(tar_bytes([("LICENSE", b"x"), (".hidden.jpg", b"y")]))


def test_real_shards(shared_data: Path) -> None:
    rows = records(read_all(shared_data / "flickr8k", keep=frozenset(range(3))))
    assert len(rows) == 17 * 3 and all(len(row.captions) == 5 and row.image for row in rows)
    assert {row.partition for row in rows} == {"train", "val", "test"}


@settings(max_examples=100, deadline=None)
@given(keys=st.lists(st.sampled_from(["a", "b", "c/a"]), max_size=8), cut=st.integers(0, 12_000))
def test_any_order_and_any_cut_is_an_error_or_every_sample(keys: list[str], cut: int) -> None:
    archive = tar_bytes([member for key in keys for member in sample(key)])
    runs = [key for n, key in enumerate(keys) if n == 0 or keys[n - 1] != key]
    try:
        rows = read_tar(archive[:cut])
    except DataError as error:
        assert cut < len(archive) or len(set(runs)) < len(runs), error
        return
    assert [row.key for row in rows] == keys and len(set(runs)) == len(runs)
    firsts = [n == 0 or keys[n - 1] != key for n, key in enumerate(keys)]
    assert codes(rows) == ["ok" if first else "duplicate_id" for first in firsts]
