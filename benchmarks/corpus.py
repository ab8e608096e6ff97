"""Web-size JPEG corpora for benchmarks, as shards and as a folder, and the rate at which their rows arrived.

Real photographs where shared data are present, else drawn ones of the same size in pixels and bytes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos.tar"
DROPPED = 0.2
Arrivals = list[tuple[float, int]]


def pictures() -> tuple[list[bytes], str]:
    """JPEGs of about 500 x 375: shared photographs, or drawn ones of a photograph's size in bytes."""
    if PHOTOS.exists():
        return [data for _, data in jpegs_of(PHOTOS)], "photographs"
    return list(drawn(120)), "drawn"


def jpegs_of(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name without its ending, and bytes, of every JPEG in a tar."""
    with tarfile.open(path) as tar:
        for member in tar:
            name, _, ending = member.name.rpartition(".")
            if ending.lower() in ("jpg", "jpeg") and (file := tar.extractfile(member)):
                yield name, file.read()


def drawn(count: int) -> Iterator[bytes]:
    """Pictures of soft colours and grain."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 14, (375, 500, 3))
        pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
        yield buffer.getvalue()


def write_shards(folder: Path, photos: list[bytes], *, num_shards: int, rows_per_shard: int) -> None:
    """Repeat the pictures into tars, each row with a caption of its own."""
    folder.mkdir(parents=True)
    for number in range(num_shards):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as tar:
            for row in range(rows_per_shard):
                place = number * rows_per_shard + row
                members = {"jpg": photos[place % len(photos)], "txt": f"photograph number {place}".encode()}
                for extension, data in members.items():
                    member = tarfile.TarInfo(f"{row:06d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def write_folder(folder: Path, photos: list[bytes], *, num_files: int) -> None:
    """Repeat the pictures as single files."""
    folder.mkdir(parents=True)
    for number in range(num_files):
        (folder / f"{number:06d}.jpg").write_bytes(photos[number % len(photos)])


def read_pictures(shard: Path) -> Iterator[bytes]:
    """The pictures of a shard, one after another."""
    with tarfile.open(shard) as tar:
        for member in tar:
            if member.name.endswith(".jpg"):
                data = tar.extractfile(member)
                assert data is not None
                yield data.read()


def steady_rate(arrivals: Iterable[tuple[float, int]], ended_s: float) -> float:
    """Rows per second after the first 20% have arrived.

    >>> steady_rate([(0.0, 2), (1.0, 4), (2.0, 4)], 2.0)
    4.0
    """
    ordered = sorted(arrivals)
    total, seen = sum(rows for _, rows in ordered), 0
    for at_s, rows in ordered:
        seen += rows
        if seen >= DROPPED * total:
            return (total - seen) / (ended_s - at_s)
    raise AssertionError("no arrivals")
