"""The clip-retrieval layout: three folders of numbered files whose rows belong together.

    img_emb/img_emb_0.npy           float [N, D]      row n of each file 0 is one image with one caption
    text_emb/text_emb_0.npy         float [N, D]
    metadata/metadata_0.parquet     N rows            image_path, caption and whatever else is known

Numbers are zero-padded to one width, because its readers pair files by sorted name. A folder may be absent. What it is
not: the meaning of the columns (`exporting`, `importing`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import DataError
from zscmr_ray.storage import FileInfo, Store

IMAGES, TEXTS, METADATA = "img_emb", "text_emb", "metadata"
FOLDERS = {IMAGES: "npy", TEXTS: "npy", METADATA: "parquet"}
_KEY = re.compile(rf"^({'|'.join(FOLDERS)})/\1_(\d+)\.(npy|parquet)$")


@dataclass(frozen=True, slots=True)
class NumberedFiles:
    """The files of one number: folder -> file."""

    number: str
    files: dict[str, FileInfo]

    @property
    def size_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(info.size_bytes for info in self.files.values())


def file_key(folder: str, number: int, *, num_files: int) -> str:
    """The name of a file; one width for all numbers of a directory.

    >>> file_key("img_emb", 3, num_files=1), file_key("metadata", 3, num_files=12)
    ('img_emb/img_emb_3.npy', 'metadata/metadata_03.parquet')
    """
    width = len(str(max(num_files - 1, 0)))
    return f"{folder}/{folder}_{number:0{width}d}.{FOLDERS[folder]}"


def find_files(store: Store) -> list[NumberedFiles]:
    """The layout's files by number. Raises DataError when there are no vectors, or when a folder lacks a number."""
    found: dict[str, dict[str, FileInfo]] = {}
    for info in store.list():
        match = _KEY.match(info.key)
        if match and match[3] == FOLDERS[match[1]]:
            found.setdefault(match[2], {})[match[1]] = info
    folders = sorted({folder for files in found.values() for folder in files})
    if not {IMAGES, TEXTS} & set(folders):
        raise DataError(
            "no vectors in the clip-retrieval layout",
            got=store.uri,
            expected="img_emb/img_emb_0.npy or text_emb/text_emb_0.npy",
        )
    for number, files in sorted(found.items()):
        missing = [folder for folder in folders if folder not in files]
        if missing:
            raise DataError(
                "a numbered file is missing",
                got=f"{store.uri}: number {number} only in {', '.join(sorted(files))}",
                expected=f"{missing[0]}/{missing[0]}_{number}.{FOLDERS[missing[0]]}",
                remedy="copy the directory again: rows of the folders belong together",
            )
    return [NumberedFiles(number, found[number]) for number in sorted(found, key=lambda n: (int(n), n))]


def map_vectors(path: Path, name: str) -> npt.NDArray[np.floating]:
    """Map an `.npy` table [N, D] into memory; raises DataError when it is torn, pickled or no table of floats."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            "a vector file cannot be read", got=f"{name}: {error}", expected="a whole .npy file"
        ) from error
    if mapped.ndim != 2 or mapped.dtype.kind != "f" or not mapped.shape[1]:
        raise DataError(
            "not a table of vectors",
            got=f"{name}: {mapped.dtype} {list(mapped.shape)}",
            expected="float16, float32 or float64 [N, D]",
        )
    return mapped


def write_vectors(
    file: IO[bytes], blocks: Iterable[npt.NDArray[np.float16]], *, shape: tuple[int, int]
) -> None:
    """Write an `.npy` file of half-precision rows block by block."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
    written = 0
    for block_BD in blocks:
        assert block_BD.shape[1] == shape[1], f"{block_BD.shape} into {shape}"
        file.write(np.ascontiguousarray(block_BD, "<f2").tobytes())
        written += len(block_BD)
    assert written == shape[0], f"{written} rows written, {shape[0]} promised"
