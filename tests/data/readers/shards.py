"""Small shards for the reader tests: tars member by member, pictures, and a folder read through plain files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from zscmr_ray.data.readers import list_shards, read_shard
from zscmr_ray.data.records import PAIR_FIELDS, Columns, Field, Record, Reject
from zscmr_ray.storage import FileInfo, Store


def picture(colour: str = "red", size: tuple[int, int] = (8, 6), format_name: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format_name)
    return buffer.getvalue()


def tar_bytes(members: Iterable[tuple[str, bytes]], *, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sample(key: str, caption: str = "a cat", image: bytes | None = None) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", image or picture()), (f"{key}.txt", caption.encode())]


def write(folder: Path, files: dict[str, bytes | str]) -> None:
    for key, data in files.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())


def read_all(
    folder: Path,
    columns: Columns | None = None,
    *,
    format_name: str = "auto",
    keep: frozenset[int] | None = None,
    with_images: bool = True,
    needs: Collection[Field] = PAIR_FIELDS,
) -> list[Record | Reject]:
    store = Store(folder)
    rows: list[Record | Reject] = []
    for spec in list_shards(store.list(), format_name):
        rows += read_shard(
            spec, store.open, columns or Columns(), keep=keep, with_images=with_images, needs=needs
        )
    return rows


def read_tar(data: bytes, columns: Columns | None = None, *, key: str = "a.tar") -> list[Record | Reject]:
    def open_file(asked: str) -> BinaryIO:
        assert asked == key
        return io.BytesIO(data)

    [spec] = list_shards([FileInfo(key, len(data), "1")])
    return list(read_shard(spec, open_file, columns or Columns()))


def records(rows: Iterable[Record | Reject]) -> list[Record]:
    rows = list(rows)
    assert all(isinstance(row, Record) for row in rows), rows
    return [row for row in rows if isinstance(row, Record)]


def codes(rows: Iterable[Record | Reject]) -> list[str]:
    """Each row's reject code, `ok` for a record."""
    return [row.code.value if isinstance(row, Reject) else "ok" for row in rows]
