"""Small shards that unpack to gigabytes, never end, or say so; each with the answer it must get. See mutation_bombs."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.data.readers import list_shards, read_shard
from zscmr_ray.data.records import Columns, Reject
from zscmr_ray.errors import DataError
from zscmr_ray.storage import FileInfo

MB = 1 << 20


def shard_bombs() -> Iterator[tuple[str, Callable[[], str]]]:
    """Every one; a thunk fails where the answer is another."""
    for name, (make, wanted) in _SHARDS.items():
        yield f"bombs {name}", partial(_shard, make, wanted)


def _shard(make: Callable[[], tuple[str, BinaryIO, int]], wanted: str) -> str:
    key, stream, size = make()
    [spec] = list_shards([FileInfo(key, size, "1")])
    words = []
    try:
        rows = read_shard(spec, lambda _: stream, Columns())
        words.extend(row.code.value if isinstance(row, Reject) else "ok" for row in rows)
    except DataError as error:
        assert f"shard {key}" in error.message and error.expected and error.remedy
        words.append("error: " + error.message.partition(": ")[2])
    assert " ".join(words).startswith(wanted), words[:5]
    return words[-1]


class Repeated(io.RawIOBase):
    """A file of parts, each so many times, that is nowhere whole."""

    def __init__(self, *parts: tuple[bytes, int]) -> None:
        self._blocks = itertools.chain.from_iterable(itertools.repeat(data, num) for data, num in parts)
        self._left = b""
        self._first = True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        # The reader looks at the first bytes and goes back, within the buffer round this file.
        raise io.UnsupportedOperation(f"seek {offset}")

    def tell(self) -> int:
        return 0

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = block
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def repeated(key: str, *parts: tuple[bytes, int]) -> tuple[str, BinaryIO, int]:
    """A shard of repeated parts."""
    size = sum(len(data) * num for data, num in parts)
    return key, io.BufferedReader(Repeated(*parts), MB), size  # type: ignore[return-value]


def gzipped(key: str, *parts: tuple[bytes, int]) -> tuple[str, BinaryIO, int]:
    """A gzipped shard of repeated parts, made without holding it."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
        for data, num in parts:
            for _ in range(num):
                file.write(data)
    return key, io.BytesIO(buffer.getvalue()), len(buffer.getvalue())


def tar_of(*members: tuple[str, bytes, bytes]) -> bytes:
    """A tar of members (name, contents, kind)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data, kind in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_with_size(field: bytes) -> tuple[str, BinaryIO, int]:
    """A tar whose first member says it has the size in `field`."""
    data = bytearray(tar_of(("a.png", b"1", b"0")))
    data[124:136] = field
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return "a.tar", io.BytesIO(bytes(data)), len(data)


def tar_of_pax(records: bytes) -> tuple[str, BinaryIO, int]:
    """A good sample behind an extended header."""
    data = tar_of(("h", records, b"x"), ("a.png", b"1", b"0"), ("a.txt", b"text", b"0"))
    return "a.tar", io.BytesIO(data), len(data)


def parquet_of_zeros() -> tuple[str, BinaryIO, int]:
    """A row group of 300 MB in some KB."""
    images = pa.chunked_array([pa.array([bytes(MB)])] * 300)
    buffer = io.BytesIO()
    pq.write_table(
        pa.table({"image": images, "caption": ["a"] * 300}), buffer, compression="zstd", use_dictionary=False
    )
    return "a.parquet", io.BytesIO(buffer.getvalue()), len(buffer.getvalue())


def parquet_of_one_value(num_rows: int) -> tuple[str, BinaryIO, int]:
    """One picture of 24 MB in the dictionary, and every row is it."""
    image = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows), pa.array([bytes(24 * MB)]))
    buffer = io.BytesIO()
    table = pa.table({"image": image, "caption": ["a"] * num_rows})
    pq.write_table(table, buffer, compression="zstd", dictionary_pagesize_limit=64 * MB)
    return "a.parquet", io.BytesIO(buffer.getvalue()), len(buffer.getvalue())


_TAR = tar_of(("a.png", bytes(9), b"0"))
_LINE = json.dumps({"image": "A" * 64, "caption": "a"}).encode() + b"\n"
_MANY = b'{"image": "", "caption": [' + b"{}," * 1_500_000 + b"{}]}\n"
_ROW = b"A" * 64 + b",a caption\n"
_HEAD = (b"image,caption\n", 1)
_MIDDLE = "ok unreadable_record ok"


def _jsonl(*parts: tuple[bytes, int]) -> Callable[[], tuple[str, BinaryIO, int]]:
    return partial(repeated, "a.jsonl", (_LINE, 1), *parts, (_LINE, 1))


def _csv(*parts: tuple[bytes, int]) -> Callable[[], tuple[str, BinaryIO, int]]:
    return partial(repeated, "a.csv", _HEAD, (_ROW, 1), *parts)


_SHARDS: dict[str, tuple[Callable[[], tuple[str, BinaryIO, int]], str]] = {
    "tar_gz_with_a_tail": (partial(gzipped, "a.tar.gz", (tar_of(), 1), (bytes(MB), 200)), "error: a decompression bomb"),
    "tar_gz_of_one_member": (partial(gzipped, "a.tgz", (_TAR[:512], 1), (bytes(MB), 200)), "error"),
    "jsonl_gz": (partial(gzipped, "a.jsonl.gz", (_LINE, 3), (b" " * MB, 200)), "ok ok ok error: a decompression bomb"),
    "tar_of_exabytes": (partial(tar_with_size, b"\x80" + b"\x7f" * 11), "error: cannot read the tar header"),
    "tar_of_terabytes": (partial(tar_with_size, b"\x80" + (1 << 39).to_bytes(11, "big")), "error"),
    "tar_of_negative_size": (partial(tar_with_size, b"\xff" * 12), "error: cannot read the tar header"),
    "pax_of_many_records": (partial(tar_of_pax, b"6 a=b\n" * 170_000), "ok"),
    "pax_of_a_long_number": (partial(tar_of_pax, b"5011 size=" + b"9" * 5000 + b"\n"), "error: cannot read the tar header"),
    "pax_too_long": (partial(tar_of_pax, b"6 a=b\n" * 400_000), "error: cannot read the tar header"),
    "jsonl_long_line": (_jsonl((b"x" * MB, 200), (b"\n", 1)), _MIDDLE),
    "jsonl_many_values": (_jsonl((_MANY, 1)), _MIDDLE),
    "jsonl_deep": (_jsonl((b"[" * MB, 9), (b"\n", 1)), _MIDDLE),
    "csv_long_line": (_csv((b"x" * MB, 200), (b"\n", 1), (_ROW, 1)), _MIDDLE),
    "csv_open_quote": (_csv((b'A,"b\n', 1), (_ROW, 30_000)), _MIDDLE),
    "csv_quotes_throughout": (partial(repeated, "a.csv", _HEAD, (b'x","z\n', 100_000)), "unreadable_record"),
    "parquet_of_zeros": (parquet_of_zeros, "error: a decompression bomb"),
    "parquet_of_one_value": (partial(parquet_of_one_value, 60), "ok ok"),
}  # fmt: skip
