"""What the mutants found, one by one: stray quotes, foreign files, names of no encoding, limits, extension types."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.mutation_shards import read
from tests.data.readers.shards import codes, picture, read_all, records, sample, tar_bytes, write
from zscmr_ray.data.readers import parquet_memory
from zscmr_ray.data.readers.csv_rows import CsvRows
from zscmr_ray.data.readers.quoting import listed, printable, shown
from zscmr_ray.data.records import Columns, Reject
from zscmr_ray.errors import DataError


def rows_of(text: str) -> list[list[str] | str]:
    return list(
        CsvRows(io.TextIOWrapper(io.BytesIO(text.encode()), newline=""), delimiter=",", where="shard a")
    )


@pytest.mark.parametrize("stray", ['x,"b\n', 'x,"b"c\n', '"x,b\n', 'x,b,"\n', '"\n'])
def test_a_stray_quote_costs_its_own_line_only(stray: str) -> None:
    good = ["a,b\n", '"c, d","e\nf"\n', "g,h\n", '"i","j"\n']
    rows = rows_of("one,two\n" + good[0] + stray + "".join(good[1:]))
    kept = [row for row in rows if isinstance(row, list)]
    assert kept == [["one", "two"], ["a", "b"], ["c, d", "e\nf"], ["g", "h"], ["i", "j"]]
    assert len(rows) == len(kept) + 1


def test_a_row_of_several_lines_with_too_many_fields_is_rejected_line_by_line() -> None:
    rows = rows_of('one,two\na,b\n"c\nd",e,f\ng,h\n')
    assert [row if isinstance(row, list) else "fault" for row in rows[1:]] == [
        ["a", "b"],
        "fault",
        "fault",
        ["g", "h"],
    ]


def test_the_error_of_an_open_quote_names_the_line_it_opens_in() -> None:
    with pytest.raises(DataError, match=r"shard a: the file ends inside a quoted field.*in line 3 "):
        rows_of('one,two\na,b\nc,"d\ne,f\n')


@pytest.mark.parametrize("key", ["a.tar", "a.jsonl", "a.csv", "a.jsonl.gz", "a.tgz"])
@pytest.mark.parametrize(
    "data",
    [b"PK\x03\x04" + bytes(600), b"PAR1" + bytes(600), b"<!DOCTYPE html><p>404", "id,é".encode("utf-16")],
)
def test_what_is_plainly_another_format_is_refused_by_name(key: str, data: bytes) -> None:
    data = gzip.compress(data) if key.endswith("gz") else data
    with pytest.raises(DataError, match=rf"shard {key} is not") as caught:
        read(key, data, Columns())
    assert caught.value.got and caught.value.expected and caught.value.remedy


def test_a_gzipped_file_without_the_ending_is_refused() -> None:
    with pytest.raises(DataError, match=r"must end in \.gz"):
        read("a.tar", gzip.compress(tar_bytes(sample("a"))), Columns())


@pytest.mark.parametrize("key", ["a.tar.gz", "a.jsonl.gz", "a.csv.gz"])
def test_an_empty_gzip_file_is_an_error_and_an_empty_stream_is_not(key: str) -> None:
    with pytest.raises(DataError, match="gzip"):
        read(key, b"", Columns())
    empty = {"a.tar.gz": tar_bytes([]), "a.jsonl.gz": b"", "a.csv.gz": b"image,caption\n"}
    assert read(key, gzip.compress(empty[key]), Columns()) == []


EMPTY = {
    "tar": tar_bytes([]),
    "jsonl": b"",
    "csv": b"image,caption\n",
    "tsv": b"image\tcaption",
}


@pytest.mark.parametrize("suffix", [*EMPTY, "parquet"])
def test_a_shard_without_rows_and_one_with_one(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, {"a.png": picture()})
    line = json.dumps({"image": "a.png", "caption": "x"})
    one = {
        "tar": tar_bytes(sample("a", "x")),
        "jsonl": line,
        "csv": "image,caption\na.png,x",
        "tsv": "image\tcaption\na.png\tx",
    }
    if suffix == "parquet":
        full = pa.table({"image": [picture()], "caption": ["x"]})
        pq.write_table(full.slice(0, 0), tmp_path / "empty.parquet")
        pq.write_table(full, tmp_path / "one.parquet")
    else:
        write(tmp_path, {f"empty.{suffix}": EMPTY[suffix], f"one.{suffix}": one[suffix]})
    [row] = records(read_all(tmp_path))
    assert (row.captions, row.image, row.offset) == (("x",), picture(), 0)


def test_many_captions_and_long_ones(tmp_path: Path) -> None:
    long, many = "word " * 2_000_000, "\n".join(f"caption {n}" for n in range(50_000))
    texts = [long, many, "x\n" * 200_000, "y" * (17 << 20), "fine"]
    write(tmp_path, {"a.tar": tar_bytes([m for n, text in enumerate(texts) for m in sample(str(n), text)])})
    rows = read_all(tmp_path)
    assert codes(rows) == ["ok", "ok", "unreadable_record", "unreadable_record", "ok"]
    assert rows[0].captions == (long.strip(),) and len(rows[1].captions) == 50_000  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["a\nb", "a\x00b", "k" * 1100, "a\x1b[31m"])
def test_a_key_that_no_id_may_be_is_a_rejected_row(name: str) -> None:
    rows = read("a.tar", tar_bytes([*sample("a"), *sample("z" + name), *sample("zz")]), Columns())
    if "\x00" in name:  # a tar name ends there
        assert len(rows) >= 2
        return
    assert codes(rows) == ["ok", "bad_id", "ok"]
    assert isinstance(rows[1], Reject) and len(rows[1].reason) <= 300


@pytest.mark.parametrize("name", ["a#1", "a%2Fb", "dir/a b", "/etc/passwd", "../../up", "é", "a&b?c=d"])
def test_odd_keys_are_names_and_nothing_else(name: str) -> None:
    [row] = records(read("a.tar", tar_bytes(sample(name)), Columns()))
    assert row.key == name and row.item_id("a.tar") == f"a.tar#{name}"


class _Marked(pa.ExtensionType):  # type: ignore[misc]
    """A type whose values run code, as Ray's pickled objects do."""

    def __init__(self, storage: Any = None) -> None:
        super().__init__(storage or pa.binary(), "zscmr.test.marked")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> _Marked:
        return cls(storage_type)

    def __arrow_ext_scalar_class__(self) -> type:
        return _MarkedScalar


class _MarkedScalar(pa.ExtensionScalar):  # type: ignore[misc]
    def as_py(self, **_: Any) -> object:
        raise AssertionError("a value of the file ran code")


@pytest.fixture
def marked() -> Any:
    pa.register_extension_type(_Marked())
    yield
    pa.unregister_extension_type("zscmr.test.marked")


def test_extension_values_are_read_as_they_are_stored(marked: None) -> None:
    images = pa.ExtensionArray.from_storage(_Marked(), pa.array([picture()]))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": images, "caption": ["a"]}), buffer)
    assert isinstance(pq.read_schema(io.BytesIO(buffer.getvalue())).field("image").type, _Marked)
    [row] = records(read("a.parquet", buffer.getvalue(), Columns()))
    assert row.image == picture()


def test_extension_values_inside_lists_are_refused(marked: None) -> None:
    inner = pa.ExtensionArray.from_storage(_Marked(pa.string()), pa.array(["a", "b"]))
    captions = pa.ListArray.from_arrays(pa.array([0, 2]), inner)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [picture()], "caption": captions}), buffer)
    with pytest.raises(DataError, match=r"shard a\.parquet: column 'caption' has an extension type"):
        read("a.parquet", buffer.getvalue(), Columns())


def test_the_footer_is_read_as_pyarrow_reads_it() -> None:
    table = pa.table(
        {"image": [bytes([n]) * 700_000 for n in range(9)], "n": list(range(9)), "s": [{"a": [1]}] * 9}
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=4, compression="none")
    footer = parquet_memory.read_footer(buffer)
    theirs = pq.read_metadata(pa.BufferReader(parquet_memory.footer_file(footer)))
    groups = parquet_memory.row_groups(footer)
    assert [group.num_rows for group in groups] == [4, 4, 1]
    for number, group in enumerate(groups):
        columns = [theirs.row_group(number).column(at) for at in range(theirs.num_columns)]
        assert [(c.path, c.plain_bytes, c.packed_bytes, c.dictionary_offset) for c in group.columns] == [
            (
                c.path_in_schema.split(".")[0],
                c.total_uncompressed_size,
                c.total_compressed_size,
                c.dictionary_page_offset or 0,
            )
            for c in columns
        ]
    text, image, folded = (
        parquet_memory.plan(groups[0], buffer, [name], flat=flat, where="a")
        for name, flat in (("n", []), ("image", []), ("image", ["image"]))
    )
    assert text == parquet_memory.Plan(parquet_memory.MAX_BATCH_ROWS, ())
    assert image.num_rows < 40 and not image.dictionaries
    assert folded.num_rows > 60 and folded.dictionaries == ("image",)
    for length in range(len(footer)):
        with pytest.raises(ValueError):
            parquet_memory.row_groups(footer[:length])


def test_large_dictionaries_are_unfolded_row_by_row_to_the_same_rows() -> None:
    images = [bytes([n]) * 700_000 if n % 3 else None for n in range(9)]
    table = pa.table({"image": images, "caption": ["a", None, "b"] * 3})
    shards = []
    for options in ({"use_dictionary": True}, {"use_dictionary": False}):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="none", **options)
        shards.append(
            [
                (row.offset, getattr(row, "image", None))
                for row in read("a.parquet", buffer.getvalue(), Columns())
            ]
        )
    assert shards[0] == shards[1] and [image for _, image in shards[0]] == [
        image if caption else None
        for image, caption in zip(images, table["caption"].to_pylist(), strict=True)
    ]


def test_two_columns_of_one_name_are_refused() -> None:
    buffer = io.BytesIO()
    values = [pa.array([picture()]), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(values, names=["image", "caption", "caption"]), buffer)
    with pytest.raises(DataError, match="repeated column names"):
        read("a.parquet", buffer.getvalue(), Columns(caption="caption"))


def test_reasons_are_printable_and_short() -> None:
    assert printable("caf\udce9") == "caf\\udce9" and len(printable("x" * 5000)) == 300
    assert shown("\ud83d") == "'\\ud83d'" and len(shown(["x" * 5000] * 5000)) <= 80
    assert len(listed(f"column {n}" for n in range(10_000))) <= 300
