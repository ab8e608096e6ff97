"""Parquet shards: column kinds, projection, Hugging Face files, and damaged ones."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.readers.shards import codes, picture, read_all, records, write
from zscmr_ray.data.records import Columns
from zscmr_ray.errors import DataError


def write_table(path: Path, table: pa.Table, *, rows_per_group: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)


def table(**columns: object) -> pa.Table:
    return pa.table(columns)


def test_bytes_titles_and_labels(tmp_path: Path) -> None:
    images = [picture(c) for c in ("red", "green", "blue")]
    write_table(
        tmp_path / "p.parquet",
        table(
            sku=[1, 2, 3],
            image=images,
            title=["a", " b ", "c\nd"],
            label=["x", None, "y"],
            split=["train", "dev", None],
        ),
    )
    rows = records(read_all(tmp_path, Columns(id="sku")))
    assert [r.image for r in rows] == images
    assert [r.captions for r in rows] == [("a",), ("b",), ("c", "d")]
    assert [(r.id, r.key, r.offset, r.labels, r.partition) for r in rows] == [
        ("1", "0", 0, ("x",), "train"),
        ("2", "1", 1, (), "val"),
        ("3", "2", 2, ("y",), None),
    ]


def test_lists_json_lists_and_separated_labels(tmp_path: Path) -> None:
    write_table(
        tmp_path / "p.parquet",
        table(
            image=[picture()] * 2,
            captions=[["a", "", "b"], ["c"]],
            labels=['["cat", "dog"]', "cat| bird|cat"],
        ),
    )
    rows = records(read_all(tmp_path, Columns(label_separator="|")))
    assert [r.captions for r in rows] == [("a", "b"), ("c",)]
    assert [r.labels for r in rows] == [("cat", "dog"), ("cat", "bird")]


def test_hugging_face_structs_and_class_names(tmp_path: Path) -> None:
    write(tmp_path, {"data/img/b.png": picture("blue")})
    images = [{"bytes": picture(), "path": "gone.png"}, {"bytes": None, "path": "img/b.png"}, None]
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    hugging = table(image=images, text=["a", "b", "c"], label=[1, 0, 1]).replace_schema_metadata(
        {"huggingface": json.dumps(features)}
    )
    write_table(tmp_path / "data" / "p.parquet", hugging)
    rows = read_all(tmp_path)
    assert codes(rows) == ["ok", "ok", "missing_image"]
    first, second = records(rows[:2])
    assert (first.image, first.labels, second.image, second.labels) == (
        picture(),
        ("dog",),
        picture("blue"),
        ("cat",),
    )


def test_a_label_beyond_the_declared_names_is_rejected(tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["cat"]}}}}
    wide = table(image=[picture()], text=["a"], label=[1]).replace_schema_metadata(
        {"huggingface": json.dumps(features)}
    )
    write_table(tmp_path / "p.parquet", wide)
    assert codes(read_all(tmp_path)) == ["unreadable_record"]


def test_faulty_cells_are_rejected_one_by_one(tmp_path: Path) -> None:
    text = pa.array(["ok", None, " ", b"caf\xe9".decode("latin-1"), "x", "ok"])
    images = [picture(), picture(), picture(), picture(), b"", None]
    write_table(tmp_path / "p.parquet", table(image=images, caption=text), rows_per_group=10)
    assert codes(read_all(tmp_path)) == [
        "ok",
        "missing_caption",
        "empty_caption",
        "ok",
        "empty_image",
        "missing_image",
    ]


def test_text_that_is_not_utf8_rejects_its_row_only(tmp_path: Path) -> None:
    raw = pa.array([b"one", b"caf\xe9", b"three"], pa.binary())
    broken = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    write_table(tmp_path / "p.parquet", table(image=[picture()] * 3, caption=broken), rows_per_group=10)
    assert codes(read_all(tmp_path)) == ["ok", "bad_text_encoding", "ok"]


def test_ids_missing_and_repeated(tmp_path: Path) -> None:
    write_table(
        tmp_path / "p.parquet",
        table(sku=["a", "a", None, "", "b\n", "c"], image=[picture()] * 6, text=["t"] * 6),
    )
    assert codes(read_all(tmp_path, Columns(id="sku"))) == [
        "ok",
        "duplicate_id",
        "bad_id",
        "bad_id",
        "bad_id",
        "ok",
    ]


def test_a_named_column_that_is_missing_names_the_columns_and_the_setting(tmp_path: Path) -> None:
    write_table(tmp_path / "p.parquet", table(image=[picture()], title=["a"]))
    with pytest.raises(DataError) as caught:
        read_all(tmp_path, Columns(caption="name"))
    assert "shard p.parquet" in str(caught.value) and caught.value.got == "columns image, title"
    assert caught.value.expected == "name" and "--set data.columns.caption=" in str(caught.value.remedy)


def test_an_unfound_caption_column_is_an_error_unless_not_needed(tmp_path: Path) -> None:
    write_table(tmp_path / "p.parquet", table(image=[picture()], alt=["a"]))
    with pytest.raises(DataError, match=r"no column with the caption.*columns image, alt"):
        read_all(tmp_path)
    assert records(read_all(tmp_path, needs={"image"}))[0].captions == ()


def test_ambiguous_columns_list_the_candidates(tmp_path: Path) -> None:
    write_table(tmp_path / "p.parquet", table(image=[picture()], title=["a"], description=["b"]))
    with pytest.raises(
        DataError, match=r"ambiguous.*title, description \(of the columns image, title, description\)"
    ):
        read_all(tmp_path)


def test_a_file_name_column_beside_the_image_is_no_rival(tmp_path: Path) -> None:
    write_table(tmp_path / "p.parquet", table(image=[picture()], filename=["x.jpg"], caption=["a"]))
    assert records(read_all(tmp_path))[0].image == picture()


def test_keep_and_projection(tmp_path: Path) -> None:
    write_table(tmp_path / "p.parquet", table(image=[picture()] * 7, text=list("abcdefg")))
    kept = records(read_all(tmp_path, keep=frozenset({0, 5, 6}), with_images=False))
    assert [(r.offset, r.captions, r.image) for r in kept] == [
        (0, ("a",), None),
        (5, ("f",), None),
        (6, ("g",), None),
    ]
    assert len(read_all(tmp_path, with_images=False, needs={"image"}, keep=frozenset({2}))) == 1


def test_images_alone_and_nothing_to_read(tmp_path: Path) -> None:
    write_table(tmp_path / "p.parquet", table(image=[picture()] * 3))
    assert len(records(read_all(tmp_path, with_images=False, needs={"image"}))) == 3


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    write_table(
        tmp_path / "p.parquet", table(image=pa.array([], pa.binary()), text=pa.array([], pa.string()))
    )
    assert read_all(tmp_path) == []


@pytest.mark.parametrize("damage", ["cut", "footer", "empty", "text"])
def test_a_damaged_file_is_an_error_naming_the_shard(tmp_path: Path, damage: str) -> None:
    buffer = io.BytesIO()
    pq.write_table(table(image=[picture()], text=["a"]), buffer)
    data = buffer.getvalue()
    bad = {
        "cut": data[:-10],
        "footer": data[:-200] + bytes(192) + data[-8:],
        "empty": b"",
        "text": b"id,image\n",
    }
    write(tmp_path, {"bad.parquet": bad[damage]})
    with pytest.raises(DataError, match=r"shard bad\.parquet"):
        read_all(tmp_path)


def test_a_damaged_page_is_an_error_naming_the_row_group(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise = [bytes((i * j) % 251 for j in range(4000)) for i in range(4)]
    pq.write_table(
        table(image=noise, text=list("abcd")),
        buffer,
        row_group_size=2,
        compression="zstd",
        use_dictionary=False,
    )
    data = bytearray(buffer.getvalue())
    data[4:200] = b"\xff" * 196
    write(tmp_path, {"bad.parquet": bytes(data)})
    with pytest.raises(DataError, match=r"shard bad\.parquet: row group 0"):
        read_all(tmp_path)


def test_real_shards(shared_data: Path) -> None:
    columns = Columns(id="id", label="article_type")
    rows = records(read_all(shared_data / "fashion", columns, with_images=False))
    assert len(rows) == 17_639 and len({row.id for row in rows}) == 17_639
    assert len({row.labels for row in rows}) == 70
