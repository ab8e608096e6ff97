"""What a store needs of the place it is in, whether a local directory or a prefix of a bucket.

Keys are relative, clean and `/`-separated (`store.py` sees to it). Every method that writes is atomic: a reader sees
the whole object or none. Places hold no data of their own and no credentials.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Protocol


@dataclass(frozen=True, slots=True, order=True)
class FileInfo:
    """One stored object: its key relative to the store, its size, and a version (ETag, or local mtime in ns)."""

    key: str
    size_bytes: int
    version: str


class Place(Protocol):
    """Where the objects of a store are; missing objects raise FileNotFoundError, all else one of our own errors."""

    def exists(self, key: str) -> bool:
        """Whether an object, or a directory, is at the key."""
        ...

    def is_file(self, key: str) -> bool:
        """Whether an object is at the key."""
        ...

    def info(self, key: str) -> FileInfo:
        """Size and version of one object."""
        ...

    def list(self, prefix: str) -> list[FileInfo]:
        """All objects below a directory, in any order, temporary ones too."""
        ...

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading."""
        ...

    def read(self, key: str) -> bytes:
        """Read a whole object."""
        ...

    def local_copy(self, key: str) -> AbstractContextManager[Path]:
        """Have the object as a local file for the length of a block."""
        ...

    def open_write(self, key: str, *, durable: bool = True) -> AbstractContextManager[IO[bytes]]:
        """Have a file that becomes the object when the block ends well."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Put an object only where none is; whether this call made it."""
        ...

    def delete(self, key: str) -> None:
        """Delete one object; a missing one is no error."""
        ...

    def delete_tree(self, prefix: str) -> None:
        """Delete everything below a directory."""
        ...

    def sweep(self) -> None:
        """Delete what killed writers left half-written."""
        ...
