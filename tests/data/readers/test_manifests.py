"""JSON Lines and CSV manifests: paths, base64, and rows that do not parse."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import pytest

from tests.data.readers.shards import codes, picture, read_all, records, write
from zscmr_ray.data.records import Columns, Reject
from zscmr_ray.errors import DataError

B64 = base64.b64encode(picture()).decode()


def lines(*rows: dict[str, object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_paths_resolve_against_the_manifest(tmp_path: Path) -> None:
    rows = lines(
        {"image": "img/a.png", "caption": "a"}, {"image": "../other/b.png", "caption": ["b", "c"], "label": 3}
    )
    write(
        tmp_path,
        {
            "shop/items.jsonl": rows,
            "shop/img/a.png": picture(),
            "other/b.png": picture("blue"),
            "img/a.png": b"no",
        },
    )
    first, second = records(read_all(tmp_path))
    assert (first.image, second.image) == (picture(), picture("blue"))
    assert second.captions == ("b", "c") and second.labels == ("3",)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "https://x.org/a.jpg",
        "file:///a.jpg",
        "C:\\a.jpg",
        "\\\\host\\a.jpg",
        "../a.jpg",
        "x/../../a",
    ],
)
def test_paths_that_may_not_be_read_are_rejected(tmp_path: Path, path: str) -> None:
    write(tmp_path, {"m.jsonl": lines({"image": path, "caption": "a"})})
    assert codes(read_all(tmp_path)) == ["bad_path"]


@pytest.mark.parametrize("path", ["gone.jpg", "folder", "."])
def test_a_missing_file_is_a_rejected_row(tmp_path: Path, path: str) -> None:
    write(tmp_path, {"m.jsonl": lines({"image": path, "caption": "a"}), "folder/x.bin": b"1"})
    assert codes(read_all(tmp_path)) == ["missing_image"]


def test_base64_data_uris_and_their_faults(tmp_path: Path) -> None:
    rows = [B64, f"data:image/png;base64,{B64}", B64[:-1], "data:image/png;base64,!!!", "", None, 7]
    write(tmp_path, {"m.jsonl": lines(*({"image": row, "text": "a"} for row in rows))})
    found = read_all(tmp_path)
    faults = ["unreadable_record", "unreadable_record", "missing_image", "missing_image", "unreadable_record"]
    assert codes(found) == ["ok", "ok", *faults]
    assert all(record.image == picture() for record in records(found[:2]))


def test_lines_that_are_no_json_objects_are_rejected_and_blank_ones_not_counted(tmp_path: Path) -> None:
    good = lines({"image": B64, "caption": "a"})
    write(tmp_path, {"m.jsonl": (good + "\n{oops\n[1]\n" + good).encode() + b"\xff\n" + good.encode()[:40]})
    rows = read_all(tmp_path)
    assert codes(rows) == [
        "ok",
        "unreadable_record",
        "unreadable_record",
        "ok",
        "bad_text_encoding",
        "unreadable_record",
    ]
    assert [row.offset for row in rows] == list(range(6))


def test_json_rows_may_differ_but_a_named_column_must_exist_somewhere(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"m.jsonl": lines({"image": B64, "title": "a"}, {"image": B64, "text": "b"}, {"image": B64})},
    )
    assert codes(read_all(tmp_path)) == ["ok", "ok", "missing_caption"]
    assert codes(read_all(tmp_path, Columns(caption="title"))) == ["ok", "missing_caption", "missing_caption"]
    with pytest.raises(DataError, match=r"shard m\.jsonl: no column 'titel'.*columns image, title"):
        read_all(tmp_path, Columns(caption="titel"))


def test_csv_with_quotes_byte_order_mark_and_multi_line_cells(tmp_path: Path) -> None:
    text = '\ufeffid,image,title,label\r\n1,a.png,"a, ""b""\nc",x\r\n\r\n2,a.png,d,\r\n'
    write(tmp_path, {"m.csv": text, "a.png": picture()})
    first, second = records(read_all(tmp_path, Columns(id="id")))
    assert (first.id, first.captions, first.labels) == ("1", ('a, "b"', "c"), ("x",))
    assert (second.id, second.offset, second.labels) == ("2", 1, ())


def test_tsv_and_gzip(tmp_path: Path) -> None:
    write(tmp_path, {"m.tsv.gz": gzip.compress(b"image\tcaption\na.png\tx, y\n"), "a.png": picture()})
    assert records(read_all(tmp_path))[0].captions == ("x, y",)


def test_base64_in_csv_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    big = base64.b64encode(bytes(300_000)).decode()
    write(tmp_path, {"m.csv": f"image,caption\n{big},a\n"})
    assert len(records(read_all(tmp_path))[0].image or b"") == 300_000


def test_faulty_csv_rows_are_rejected_and_reading_goes_on(tmp_path: Path) -> None:
    body = b'image,caption\na.png,ok\na.png\na.png,x,y\n"a"b,c\na.png,caf\xe9\na.png,  \na.png,ok\n'
    write(tmp_path, {"m.csv": body, "a.png": picture()})
    expected = ["unreadable_record"] * 3 + ["bad_text_encoding", "empty_caption", "ok"]
    assert codes(read_all(tmp_path)) == ["ok", *expected]


def test_an_open_quote_is_an_error_because_it_swallows_rows(tmp_path: Path) -> None:
    write(tmp_path, {"m.csv": 'image,caption\na.png,"oops\na.png,b\n'})
    with pytest.raises(DataError, match=r"shard m\.csv: the file ends inside a quoted field"):
        read_all(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no header"), ("image,caption,image\n", "repeated"), ("image,alt\n", "no column with the caption")],
)
def test_a_header_that_is_missing_or_wrong(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, {"m.csv": text})
    with pytest.raises(DataError, match=message):
        read_all(tmp_path)


def test_keep_and_without_images(tmp_path: Path) -> None:
    write(tmp_path, {"m.csv": "image,caption\ngone.png,a\ngone.png,b\n"})
    [row] = records(read_all(tmp_path, keep=frozenset({1}), with_images=False))
    assert (row.offset, row.captions) == (1, ("b",))
    write(
        tmp_path / "j",
        {"m.jsonl": lines({"image": "gone.png", "caption": "a"}, {"image": B64, "caption": "b"})},
    )
    [row] = records(read_all(tmp_path / "j", keep=frozenset({1})))
    assert row.offset == 1


def test_a_shard_that_vanished_is_an_error(tmp_path: Path) -> None:
    from zscmr_ray.data.readers import read_shard
    from zscmr_ray.data.records import ShardSpec

    def open_file(key: str) -> None:
        raise FileNotFoundError(key)

    spec = ShardSpec("m.csv", 1, "1", "csv")
    with pytest.raises(DataError, match=r"m\.csv is missing"):
        list(read_shard(spec, open_file, Columns()))  # type: ignore[arg-type]


def test_text_only_corpora_need_no_image_column(tmp_path: Path) -> None:
    write(tmp_path, {"m.csv": "text\nhello\n"})
    [row] = records(read_all(tmp_path, needs={"caption"}))
    assert row.captions == ("hello",) and row.image is None
    assert not isinstance(row, Reject)
