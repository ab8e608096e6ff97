"""Opening a shard's byte stream, gunzipped where its name says so, with faults named by shard."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from zscmr_ray.data.records import OpenFile, ShardSpec
from zscmr_ray.errors import DataError


@contextmanager
def open_stream(spec: ShardSpec, open_file: OpenFile) -> Iterator[BinaryIO]:
    """Open a shard for reading; raises DataError when it is missing or its gzip stream is damaged or cut short."""
    try:
        raw = open_file(spec.key)
    except FileNotFoundError as error:
        raise DataError(f"shard {spec.key} is missing", got="no such file") from error
    with raw:
        if not spec.key.lower().endswith((".gz", ".tgz")):
            yield raw
            return
        try:
            with gzip.open(raw, "rb") as unzipped:
                yield cast(BinaryIO, unzipped)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"shard {spec.key}: damaged or truncated gzip stream",
                got=str(error),
                expected="a complete .gz file",
                remedy="copy or download the shard again",
            ) from error
