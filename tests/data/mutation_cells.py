"""Rows whose bytes are in order and whose values are not, and folders whose files are not: for the mutation tests.

Between two good rows stands one with a strange value in some field: it is a record or a reject, and the good rows are
read as ever.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import random
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.mutation_pictures import encoded, scene
from tests.data.mutation_shards import Case, content, outcome
from zscmr_ray.data.readers import list_shards, read_shard
from zscmr_ray.data.records import Columns, Record, Reject
from zscmr_ray.errors import DataError
from zscmr_ray.storage import FileInfo

_PICTURE = encoded(scene(8, 6), "PNG")
_B64 = base64.b64encode(_PICTURE).decode()
_COLUMNS = Columns(id="id", label_separator="|")


def _nested(depth: int, leaf: Any) -> Any:
    for _ in range(depth):
        leaf = [leaf]
    return leaf


def strange_values() -> list[Any]:
    """Values that a JSON field may have: of the wrong kind, too long, too deep, and of no encoding."""
    texts = [
        "", " ", "\0", "a\0b", "\ud800", "caf\udce9", "\ufeff", "a\nb", "\r\n", "#", "/", "%2F", "a#1", "..", "../x",
        "/etc/passwd", "~root", "C:\\x", "\\\\host\\x", "x" * 300, "x" * 5000, "é" * 1024, "file:///etc/passwd",
        "http://x/y.jpg", "data:image/png;base64,", f"data:image/png;base64,{_B64}", f"data:;base64,{_B64[:-3]}!!",
        _B64, _B64[:-2], _B64 + "=" * 3, _B64 + "\n!" + _B64, "A" + " " * 20_000 + "!", "A" * 47 + " " * 20_000 + "!",
        "[", "[]", '["a"]', '["\\ud83d"]', "[" * 5000, "[1]", '[["a"]]', "{}", "null", "NaN", "1e999", "train", "TEST ",
        "weekend", "|", "a||b| ", "|".join("ab" * 50), "\u202e", "\u0000\u001f\x7f\x85", "\U0001f600", "=cmd()", "m.jsonl",
        "a.png/", "a.png/b", "./" * 400 + "a.png", "a" * 254 + "/b.png", "\x1b[31m", "%s%n", "a.png",
    ]  # fmt: skip
    others = [
        None, True, False, 0, -1, 7, 1 << 70, 10**4000, 0.5, float("nan"), float("inf"), [], [[]], {}, [None], ["a", None],
        ["a", 1], [{}], {"bytes": None}, {"bytes": "x", "path": None}, {"path": "a.png"}, {"path": "../../x"}, {"path": 3},
        {"bytes": [1, 2]}, _nested(3, "a"), _nested(30, "a"), _nested(700, "a"), ["a"] * 1000, list(range(50)), ["\ud800"],
    ]  # fmt: skip
    return [*texts, *others]


def json_cell_cases(num: int, seed: int) -> Iterator[Case]:
    """One or two strange values in the middle row of three."""
    for number, row in enumerate(_strange_rows(num, seed)):
        lines = [_good(0), row, _good(2)]
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        yield f"json_cells {number} {str(row)[:200]!r}", partial(_middle, "m.jsonl", data)


def csv_cell_cases(num: int, seed: int) -> Iterator[Case]:
    """The same values as text, quoted as CSV wants it; what is no text is its JSON."""
    for number, row in enumerate(_strange_rows(num, seed)):
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(_good(0)))
        writer.writeheader()
        for line in (_good(0), row, _good(2)):
            writer.writerow(
                {k: v if isinstance(v, str) else json.dumps(v) for k, v in line.items() if k in _good(0)}
            )
        data = buffer.getvalue().encode("utf-8", "surrogatepass")
        yield f"csv_cells {number} {str(row)[:200]!r}", partial(_middle, "m.csv", data)


def parquet_cell_cases(num: int, seed: int) -> Iterator[Case]:
    """Columns of every Arrow type in the place of each field."""
    kinds = _arrow_columns()
    names = ["id", "image", "caption", "label", "split"]
    for number in range(num):
        rng = random.Random(seed * 1_000_003 + number)
        columns = {name: pa.array([_good(row)[name] for row in range(3)]) for name in names}
        columns["image"] = pa.array([_PICTURE] * 3)
        for name in rng.sample(names, rng.choice((1, 1, 2))):
            columns[name] = rng.choice(kinds)
        buffer = io.BytesIO()
        try:
            pq.write_table(pa.table(columns), buffer, use_dictionary=rng.random() < 0.5)
        except (pa.ArrowException, OSError):
            continue  # a type that parquet cannot hold
        shown = {name: str(column.type) for name, column in columns.items()}

        def check(data: bytes = buffer.getvalue()) -> str:
            rows = outcome("m.parquet", data, _COLUMNS)
            assert rows is None or len(rows) == 3
            return "error" if rows is None else "rows"

        yield f"parquet_cells {number} {shown}", check


def folder_cases(num: int, seed: int) -> Iterator[Case]:
    """Folders of pictures and texts in which files were renamed, swapped, emptied, doubled and removed."""
    for number in range(num):
        rng = random.Random(seed * 1_000_003 + number)
        files = {
            f"{folder}{row}.{end}": data
            for folder in ("", "cat/")
            for row in range(3)
            for end, data in _FILES
        }
        for _ in range(rng.randint(1, 3)):
            _damage_folder(rng, files)
        yield f"folder {number} {sorted(files)}", partial(_folder, files)


_FILES = (("png", _PICTURE), ("txt", b"a caption"))
_NAMES = ("a.b.png", "A.PNG", "x.jpeg.txt", ".hidden.png", "no-suffix", "%2e.png", "a b#1.png", "é.png", "\x07.png",
          "l" * 200 + ".png", "x\n.png", "0.png.txt", "0.txt.png", "0.webp", "Thumbs.db", "dog/0.png")  # fmt: skip


def _damage_folder(rng: random.Random, files: dict[str, bytes]) -> None:
    name = rng.choice(sorted(files))
    match rng.randrange(5):
        case 0:
            files.pop(name)
        case 1:
            files[rng.choice(_NAMES)] = files.pop(name)
        case 2:
            other = rng.choice(sorted(files))
            files[name], files[other] = files[other], files[name]
        case 3:
            files[name] = rng.choice((b"", b"\xff", b" \n", bytes(2000), _PICTURE[:-9], b"x" * 5000))
        case _:
            files[rng.choice(_NAMES)] = files[name]


def _folder(files: dict[str, bytes]) -> str:
    """Every picture and every lone text is a row, counted once."""

    def open_file(key: str) -> BinaryIO:
        return io.BytesIO(files[key])

    try:
        specs = list_shards([FileInfo(key, len(data), "1") for key, data in files.items()], "folder")
        rows = [row for spec in specs for row in read_shard(spec, open_file, Columns())]
    except DataError as error:
        assert error.expected and error.remedy
        return "error"
    keys = {key for spec in specs for key in spec.files if not key.endswith(".txt")}
    named = [row for row in rows if not str(row.key).endswith(".txt")]
    assert len(named) == len(keys), f"{len(named)} rows of {len(keys)} pictures"
    for row in rows:
        assert isinstance(row, Reject) or row.captions
        assert not isinstance(row, Reject) or row.reason.encode()
    return "rows"


def _good(row: int) -> dict[str, Any]:
    return {
        "id": f"good-{row}",
        "image": _B64,
        "caption": f"a caption {row}",
        "label": "x|y",
        "split": "train",
    }


def _strange_rows(num: int, seed: int) -> Iterator[dict[str, Any]]:
    values, names = strange_values(), list(_good(1))
    for number in range(num):
        rng = random.Random(seed * 1_000_003 + number)
        # Every value in every field, then two at a time.
        first = names[number // len(values) % len(names)]
        row = _good(1) | {first: values[number % len(values)]}
        if number >= len(values) * len(names):
            row[rng.choice(names)] = rng.choice(values)
        yield row


def _middle(key: str, data: bytes) -> str:
    rows = outcome(key, data, _COLUMNS)
    assert rows is not None, "a strange value is a row's fault, not the shard's"
    first, last = rows[0], rows[-1]
    for row, number in ((first, 0), (last, 2)):
        assert isinstance(row, Record), row
        assert content(row) == (f"good-{number}", _PICTURE, (f"a caption {number}",), ("x", "y"))
    assert len(rows) >= 3
    return "rows" if isinstance(rows[1], Record) else rows[1].code.value


def _arrow_columns() -> list[Any]:
    raw = pa.array([b"one", b"caf\xe9", b"three"], pa.binary())
    broken = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    days = pa.array([1, 1 << 40, -(1 << 40)], pa.int64())
    texts = pa.array(["a", None, "b"])
    return [
        broken, texts, texts.cast(pa.large_string()), texts.dictionary_encode(), raw, raw.cast(pa.large_binary()),
        raw.dictionary_encode(), pa.array([b"abcd"] * 3, pa.binary(4)), pa.array([1, None, -5]),
        pa.array([1.5, float("nan"), None]),
        pa.array([True, None, False]), pa.nulls(3), pa.array([["a"], [], None]), pa.array([["a", None], ["\n"], ["b"]]),
        pa.array([[["a"]], None, [[]]]), pa.array([{"bytes": b"x", "path": None}, None, {"bytes": None, "path": "a.png"}]),
        pa.array([{"a": 1}] * 3), days.cast(pa.timestamp("s")), days.cast(pa.timestamp("us")), days.cast(pa.duration("s")),
        pa.array([1, 1 << 30, -(1 << 30)], pa.int32()).cast(pa.date32()),
        pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float16(), 2)),
        pa.array([b"x" * 16] * 3, pa.uuid().storage_type).cast(pa.uuid()), pa.array([[1, 2]] * 3, pa.list_(pa.uint8())),
        pa.array([[("k", "v")]] * 3, pa.map_(pa.string(), pa.string())), pa.array(["x" * 5000] * 3),
        pa.array([10**30] * 3, pa.decimal128(38, 0)), pa.array([["\0"] * 500] * 3),
    ]  # fmt: skip


SUITES = {
    "json_cells": json_cell_cases,
    "csv_cells": csv_cell_cases,
    "parquet_cells": parquet_cell_cases,
    "folders": folder_cases,
}
