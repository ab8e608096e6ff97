"""Encoded pictures of many items on this machine's disk, by number: for training from pixels, where order jumps.

A corpus of them does not fit in memory, and an object store answers too slowly for single pictures; a file of the
process's own does, and the operating system keeps in memory what it can. Gone with the process.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path


class ImageBytes:
    """A list of byte strings in an unnamed temporary file (below TMPDIR); reading is safe from several threads."""

    def __init__(self) -> None:
        self._descriptor, path = tempfile.mkstemp(prefix="zscmr-images-")
        Path(path).unlink()
        weakref.finalize(self, os.close, self._descriptor)
        self._starts = [0]

    def __len__(self) -> int:
        return len(self._starts) - 1

    def extend(self, images: Iterable[bytes]) -> None:
        """Append pictures. Raises OSError for a full disk."""
        with open(self._descriptor, "wb", closefd=False) as file:
            for image in images:
                file.write(image)
                self._starts.append(self._starts[-1] + len(image))

    def __getitem__(self, number: int) -> bytes:
        start, stop = self._starts[number], self._starts[number + 1]
        return os.pread(self._descriptor, stop - start, start)
