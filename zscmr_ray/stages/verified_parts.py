"""A data file that a manifest lists, opened only when it is the file the manifest describes.

Read through a local file (the object itself, or a temporary copy of a remote one), so that memory is a batch of rows
and never the part.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.errors import DataError
from zscmr_ray.manifest import PartRecord
from zscmr_ray.storage import Store


@contextlib.contextmanager
def verified_file(store: Store, record: PartRecord) -> Iterator[Path]:
    """A local file with the part's bytes; raises DataError when they are not those of its record."""
    with store.local_copy(record.name) as path:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != record.sha256:
            raise DataError(
                "a part is not the one its manifest describes",
                got=f"{store.uri}/{record.name}: sha256 {digest[:12]}",
                expected=f"sha256 {record.sha256[:12]}",
                remedy="make the directory again with --overwrite, or copy the part again",
            )
        yield path


@contextlib.contextmanager
def verified_part(store: Store, record: PartRecord) -> Iterator[pq.ParquetFile]:
    """The part as an open parquet file; raises DataError when it is damaged."""
    with verified_file(store, record) as path, open_parquet(path, f"{store.uri}/{record.name}") as part:
        yield part


@contextlib.contextmanager
def open_parquet(path: Path, name: str) -> Iterator[pq.ParquetFile]:
    """A local parquet file; raises DataError, with the name users know it by, when it is none."""
    try:
        # pre_buffer reads the columns of every row group at once: 40 MB where a batch takes 8.
        part = pq.ParquetFile(path, pre_buffer=False)
    except pa.ArrowException as error:
        raise DataError("not a readable parquet file", got=f"{name}: {error}") from error
    with part:
        yield part
