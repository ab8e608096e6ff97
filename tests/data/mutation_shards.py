"""Small shards of every container with the rows they hold, mutated; and what must be true of whatever is read.

Always: a DataError that names the shard, or rows whose offsets count up from 0. Where the container lets one tell: a
row whose own bytes were not touched is read as before.
"""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data import mutate
from tests.data.mutate import Mutant, mutants
from tests.data.mutation_pictures import encoded, scene
from zscmr_ray.data.readers import list_shards, read_shard
from zscmr_ray.data.records import Columns, Record, Reject
from zscmr_ray.errors import DataError
from zscmr_ray.storage import FileInfo

NUM_ROWS = 8
Rows = list[Record | Reject]
Case = tuple[str, Callable[[], str]]
_BY_ID = Columns(id="id")


def read(key: str, data: bytes, columns: Columns, **options: object) -> Rows:
    """Read one shard from memory; any other file is missing."""

    def open_file(asked: str) -> BinaryIO:
        if asked != key:
            raise FileNotFoundError(asked)
        return io.BytesIO(data)

    [spec] = list_shards([FileInfo(key, len(data), "1")])
    return list(read_shard(spec, open_file, columns, **options))  # type: ignore[arg-type]


def outcome(key: str, data: bytes, columns: Columns) -> Rows | None:
    """The rows, or None for a clear error; anything else is a fault."""
    try:
        rows = read(key, data, columns)
    except DataError as error:
        assert f"shard {key}" in error.message and error.expected, f"not a clear error: {error}"
        str(error).encode()
        return None
    assert [row.offset for row in rows] == list(range(len(rows))), "offsets with a gap"
    for row in rows:
        if isinstance(row, Reject):
            row.reason.encode(), (row.key or "").encode()
            assert 0 < len(row.reason) < 500, f"a reason of {len(row.reason)} characters"
    return rows


def content(row: Record | Reject) -> object:
    """What of a row must not change when its neighbours do."""
    return (row.id, row.image, row.captions, row.labels) if isinstance(row, Record) else row.code


def kept(rows: Rows, untouched: dict[str, object], name: Callable[[Record], str]) -> str:
    """Every untouched row is there with its content, but for one whose id a damaged row took first."""
    found = {name(row): content(row) for row in rows if isinstance(row, Record)}
    taken = " ".join(row.reason for row in rows if isinstance(row, Reject) and row.code == "duplicate_id")
    for key, wanted in untouched.items():
        assert found.get(key) == wanted or repr(key) in taken, f"row {key!r} was lost or changed"
    return "rows"


# -- specimens --------------------------------------------------------------------------------------------------


def _pictures() -> list[bytes]:
    return [encoded(scene(8 + row, 6), "PNG") for row in range(NUM_ROWS)]


def tar_shard(tar_format: int) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """A tar of picture, caption and JSON members, and the bytes of each sample."""
    buffer, spans = io.BytesIO(), {}
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for row, picture in enumerate(_pictures()):
            key = f"folder{row % 2}{'/long' * 25 * (row == 5)}/{row:03d}"
            start = tar.offset
            meta = json.dumps({"id": f"item-{row}", "label": ["cat", "dog"][row % 2]}).encode()
            for extension, data in (("png", picture), ("txt", f"caption {row} é".encode()), ("json", meta)):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            spans[key] = (start, tar.offset)
    return buffer.getvalue(), spans


def json_lines() -> list[bytes]:
    """Rows of a JSON Lines manifest."""
    return [
        json.dumps(
            {
                "id": f"item-{row}",
                "image": base64.b64encode(picture).decode(),
                "caption": [f"a {row}", "é\n"],
            },
            ensure_ascii=bool(row % 2),
        ).encode()
        for row, picture in enumerate(_pictures())
    ]


def csv_rows() -> list[bytes]:
    """The header and the rows of a CSV manifest: plain, quoted and of several lines."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    sizes = [0]
    for row in [["id", "image", "caption", "label"], *_csv_values()]:
        writer.writerow(row)
        sizes.append(len(buffer.getvalue().encode()))
    data = buffer.getvalue().encode()
    return [data[start:stop] for start, stop in pairwise(sizes)]


def _csv_values() -> Iterator[list[str]]:
    captions = ("plain", "with, comma", 'a "quoted" word', "two\nlines", "é", 'all, "of"\r\nit', "x", "y, z")
    for row, picture in enumerate(_pictures()):
        yield [f"item-{row}", base64.b64encode(picture).decode(), captions[row], "shoe"]


def parquet_shard(**options: object) -> bytes:
    """Three row groups of pictures, captions and labels."""
    table = pa.table(
        {
            "id": [f"item-{row}" for row in range(NUM_ROWS)],
            "image": _pictures(),
            "caption": [[f"a {row}", "b"] for row in range(NUM_ROWS)],
            "label": [["cat", "dog"][row % 2] for row in range(NUM_ROWS)],
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=3, write_page_checksum=True, **options)
    return buffer.getvalue()


# -- suites -----------------------------------------------------------------------------------------------------


def tar_cases(num: int, seed: int) -> Iterator[Case]:
    """Tars of three dialects; with repaired checksums anything may be said, and nothing may break."""
    for name in ("ustar", "gnu", "pax"):
        data, spans = tar_shard(getattr(tarfile, f"{name.upper()}_FORMAT"))
        whole = {row.key: content(row) for row in read("a.tar", data, _BY_ID) if isinstance(row, Record)}
        assert len(whole) == NUM_ROWS
        places = mutate.tar_places(data)
        every = mutants(data, num // 3 + 1, seed=seed, places=places, repair=mutate.repair_tar)
        for number, mutant in enumerate(every):
            untouched = {k: whole[k] for k, span in spans.items() if _apart(span, mutant)}
            yield f"tar_{name} {number} {mutant.how} at {mutant.start}", partial(_tar, mutant, untouched)


def _tar(mutant: Mutant, untouched: dict[str, object]) -> str:
    rows = outcome("a.tar", mutant.data, _BY_ID)
    if rows is None:
        return "error"
    return "rows" if "repaired" in mutant.how else kept(rows, untouched, lambda row: row.key)


def gzip_cases(num: int, seed: int) -> Iterator[Case]:
    """Gzipped tar, JSON Lines and CSV: the checksum leaves an error or the very same rows."""
    shards = {"a.tar.gz": tar_shard(tarfile.PAX_FORMAT)[0], "a.jsonl.gz": b"\n".join([*json_lines(), b""])}
    shards["a.csv.gz"] = b"".join(csv_rows())
    for key, plain in shards.items():
        data = gzip.compress(plain, mtime=0)
        whole = read(key, data, _BY_ID)
        for number, mutant in enumerate(mutants(data, num // 3 + 1, seed=seed, places=range(16))):

            def check(key: str = key, data: bytes = mutant.data, whole: Rows = whole) -> str:
                rows = outcome(key, data, _BY_ID)
                if rows is None:
                    return "error"
                # A file of two gzip streams is a whole one: the second's rows have the ids of the first.
                assert rows[: len(whole)] == whole, "rows of a damaged file"
                assert all(isinstance(row, Reject) for row in rows[len(whole) :])
                return "rows"

            yield f"{key} {number} {mutant.how} at {mutant.start}", check


def jsonl_cases(num: int, seed: int) -> Iterator[Case]:
    """A line is a row whatever is in it, and an untouched line is read as before."""
    lines = json_lines()
    data = b"\n".join(lines) + b"\n"
    whole = {line: content(row) for line, row in zip(lines, read("a.jsonl", data, _BY_ID), strict=True)}
    for number, mutant in enumerate(mutants(data, num, seed=seed, places=mutate.text_places(data))):

        def check(data: bytes = mutant.data) -> str:
            rows = outcome("a.jsonl", data, _BY_ID)
            if rows is None:
                return "error"
            now = [line for line in data.split(b"\n") if line.strip()]
            assert len(rows) == len(now), f"{len(rows)} rows of {len(now)} lines"
            for line, row in zip(now, rows, strict=True):
                if line in whole:
                    assert content(row) in (whole[line], "duplicate_id"), "an untouched line changed"
            return "rows"

        yield f"jsonl {number} {mutant.how} at {mutant.start}", check


def csv_cases(num: int, seed: int) -> Iterator[Case]:
    """Rows of one line and of several; a stray quote may not swallow its neighbours."""
    pieces = csv_rows()
    data = b"".join(pieces)
    whole = [content(row) for row in read("a.csv", data, _BY_ID)]
    assert len(whole) == NUM_ROWS
    starts = [sum(map(len, pieces[:row])) for row in range(len(pieces) + 1)]
    for number, mutant in enumerate(mutants(data, num, seed=seed, places=mutate.text_places(data))):
        spans = {f"item-{row}": (starts[row + 1], starts[row + 2]) for row in range(NUM_ROWS)}
        untouched = {}
        if mutant.start >= starts[1]:
            untouched = {f"item-{r}": whole[r] for r in range(NUM_ROWS) if _apart(spans[f"item-{r}"], mutant)}

        def check(data: bytes = mutant.data, untouched: dict[str, object] = untouched) -> str:
            rows = outcome("a.csv", data, _BY_ID)
            return "error" if rows is None else kept(rows, untouched, _id_of)

        yield f"csv {number} {mutant.how} at {mutant.start}", check


def parquet_cases(num: int, seed: int) -> Iterator[Case]:
    """Several encodings, pages with checksums: damage outside the footer is an error or changes nothing."""
    kinds = {
        "plain": {"use_dictionary": False, "compression": "none"},
        "dictionary": {"compression": "snappy"},
        "zstd_v2": {"compression": "zstd", "data_page_version": "2.0", "data_page_size": 200},
    }
    for name, options in kinds.items():
        data = parquet_shard(**options)
        whole = read("a.parquet", data, _BY_ID)
        footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        rng = random.Random(seed)
        places = [4, *range(footer, len(data)), *(rng.randrange(footer) for _ in range(60))]
        for number, mutant in enumerate(mutants(data, num // 3 + 1, seed=seed, places=places)):

            def check(mutant: Mutant = mutant, whole: Rows = whole, footer: int = footer) -> str:
                rows = outcome("a.parquet", mutant.data, _BY_ID)
                if rows is None:
                    return "error"
                assert len(rows) == NUM_ROWS, f"{len(rows)} rows"
                assert mutant.stop > footer or rows == whole, "changed content passed the checksum"
                return "rows"

            yield f"parquet_{name} {number} {mutant.how} at {mutant.start}", check


def _id_of(row: Record) -> str:
    return str(row.id)


def _apart(span: tuple[int, int], mutant: Mutant) -> bool:
    """Whether the mutant changed nothing in [start, stop) and did not cut it off."""
    return mutant.stop < span[0] or mutant.start > span[1]


SUITES = {
    "tar": tar_cases,
    "gzip": gzip_cases,
    "jsonl": jsonl_cases,
    "csv": csv_cases,
    "parquet": parquet_cases,
}
