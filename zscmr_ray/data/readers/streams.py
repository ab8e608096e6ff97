"""Opening a shard's byte stream, gunzipped where its name says so, with faults named by shard.

What is plainly another format is refused here by its first bytes: read as rows, it would be thousands of rejects.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from zscmr_ray.data.records import OpenFile, ShardSpec
from zscmr_ray.errors import DataError

# Text shrinks five- to thirtyfold, pictures not at all; a bomb is a thousand times its size.
MAX_GZIP_RATIO = 200
_FREE_GZIP_BYTES = 64 << 20
_BUFFER_BYTES = 1 << 17
_HEAD_BYTES = 16
_FOREIGN = (
    (b"\x1f\x8b", "gzip (its name must end in .gz)"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PAR1", "a parquet file"),
    (b"\x28\xb5\x2f\xfd", "zstandard"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"<!doctype", "an HTML page"),
    (b"<html", "an HTML page"),
)


@contextmanager
def open_stream(spec: ShardSpec, open_file: OpenFile) -> Iterator[BinaryIO]:
    """Open a shard for reading; raises DataError when it is missing, of another format, or its gzip is damaged."""
    try:
        raw = open_file(spec.key)
    except FileNotFoundError as error:
        raise DataError(
            f"shard {spec.key} is missing",
            got="no such file",
            expected="the file that was listed",
            remedy="put it back, or run again to list the input anew",
        ) from error
    with raw:
        is_gzip = spec.key.lower().endswith((".gz", ".tgz"))
        if not is_gzip:
            if spec.format != "parquet":
                _refuse_foreign(raw, spec)
            yield raw
            return
        try:
            with gzip.open(raw, "rb") as unzipped:
                # An empty file would pass for an empty stream.
                if not unzipped.peek(1) and not spec.size_bytes:
                    raise EOFError("an empty file")
                _refuse_foreign(cast(BinaryIO, unzipped), spec)
                yield cast(BinaryIO, io.BufferedReader(_Capped(unzipped, spec), _BUFFER_BYTES))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"shard {spec.key}: damaged or truncated gzip stream",
                got=str(error),
                expected="a complete .gz file",
                remedy="copy or download the shard again",
            ) from error


class _Capped(io.RawIOBase):
    """A gunzipped stream that ends in an error when it grows out of all proportion to the file."""

    def __init__(self, unzipped: gzip.GzipFile, spec: ShardSpec) -> None:
        self._unzipped = unzipped
        self._spec = spec
        self._room_bytes = _FREE_GZIP_BYTES + MAX_GZIP_RATIO * spec.size_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        num_bytes = self._unzipped.readinto(buffer)
        self._room_bytes -= num_bytes
        if self._room_bytes < 0:
            raise DataError(
                f"shard {self._spec.key}: a decompression bomb",
                got=f"{self._spec.size_bytes} bytes that gunzip to more than {MAX_GZIP_RATIO} times as many",
                expected="a .gz file of text or pictures",
                remedy="gunzip it by hand if it is what it should be",
            )
        return num_bytes


def _refuse_foreign(stream: BinaryIO, spec: ShardSpec) -> None:
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    for magic, name in _FOREIGN:
        if head[: len(magic)].lower() == magic.lower():
            raise DataError(
                f"shard {spec.key} is not {spec.format}",
                got=f"{name}: it begins with {head!r}",
                expected=f"a {spec.format} shard, as its name says",
                remedy="write it again in the format of its name, text as UTF-8, or rename it",
            )
