"""A directory somewhere, on a local disk or below `s3://bucket`: keys, whole objects, JSON, listings.

Keys are relative, `/`-separated and never leave the store. Writes are atomic: a reader sees the whole object or none
(a rename on a local disk, one put on S3). S3 operations are retried with back-off and checked (`s3.py`). Credentials
and the endpoint come from the usual AWS environment variables only; they are never part of a URI, a configuration or a
log line.

It is not a cache, a lock or a listing one may trust for completeness: `manifest.py` says what is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.storage.local import TEMPORARY, LocalFiles
from zscmr_ray.storage.place import FileInfo, Place

_COPY_BYTES = 1 << 20


class Store:
    """A directory on a local disk or in an S3 bucket.

    Pickles to its URI alone, so that it travels to Ray workers; each process opens its own connection.
    """

    def __init__(self, uri: str | Path) -> None:
        text = str(uri)
        scheme, separator, _ = text.partition("://")
        if separator and scheme not in {"s3", "file"}:
            raise ConfigError(
                "unknown storage scheme", got=text, expected="a local path or s3://bucket/prefix"
            )
        if scheme == "s3" and "@" in text.removeprefix("s3://").split("/")[0]:
            raise ConfigError(
                "credentials in a URI", remedy="use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        self.is_local = scheme != "s3" or not separator
        self.uri = str(Path(text.removeprefix("file://")).absolute()) if self.is_local else text.rstrip("/")
        self._place = open_place(self.uri, is_local=self.is_local)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return (Store, (self.uri,))

    def child(self, key: str) -> Store:
        """The store one or more directories below this one."""
        return Store(self.path(key)) if self.is_local else Store(f"{self.uri}/{_clean(key)}")

    def path(self, key: str = "") -> str:
        """The key's full path as pyarrow names it (no scheme)."""
        base = self.uri if self.is_local else self.uri.removeprefix("s3://")
        return f"{base}/{_clean(key)}" if key else base

    # -- reading ------------------------------------------------------------------------------------------

    def exists(self, key: str = "") -> bool:
        """Whether an object, or a directory with something in it, is at the key."""
        return self._place.exists(_clean(key))

    def is_file(self, key: str = "") -> bool:
        """Whether an object is at the key (without one: at the store's own URI)."""
        return self._place.is_file(_clean(key))

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading; raises DataError when it is missing."""
        try:
            return self._place.open(_clean(key))
        except FileNotFoundError as error:
            raise self._missing(key) from error

    def read_bytes(self, key: str) -> bytes:
        """Read a whole object; raises DataError when it is missing."""
        try:
            return self._place.read(_clean(key))
        except FileNotFoundError as error:
            raise self._missing(key) from error

    def read_json(self, key: str) -> Any:
        """Read an object as JSON; raises DataError when it is missing or torn."""
        data = self.read_bytes(key)
        try:
            return json.loads(data)
        except ValueError as error:
            raise DataError(
                "not valid JSON", got=f"{self.uri}/{key}", remedy="restore or delete it"
            ) from error

    def info(self, key: str) -> FileInfo:
        """Size and version of one object; raises DataError when it is missing."""
        try:
            return self._place.info(_clean(key))
        except FileNotFoundError as error:
            raise self._missing(key) from error

    def list(self, prefix: str = "") -> list[FileInfo]:
        """All objects below a directory, sorted by key (empty when there is none). Temporary files are left out."""
        return sorted(info for info in self._place.list(_clean(prefix)) if not _is_temporary(info.key))

    def sha256(self, key: str) -> str:
        """The hex sha256 of an object's contents, streamed."""
        digest = hashlib.sha256()
        with self.open(key) as file:
            while block := file.read(_COPY_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def local_copy(self, key: str) -> AbstractContextManager[Path]:
        """A local file with the object's contents: the object itself where it is local, else a temporary copy."""
        return self._place.local_copy(_clean(key))

    # -- writing ------------------------------------------------------------------------------------------

    def write_bytes(self, key: str, data: bytes, *, durable: bool = True) -> None:
        """Put an object atomically, replacing what was there; `durable` as in `open_write`."""
        with self.open_write(key, durable=durable) as file:
            file.write(data)

    def write_json(self, key: str, value: object) -> None:
        """Put a JSON document (sorted keys, two spaces, a final newline) atomically."""
        self.write_bytes(key, json_bytes(value))

    def create_bytes(self, key: str, data: bytes) -> bool:
        """Put an object only where none is, atomically among all writers; returns whether this call made it.

        `data` must be this writer's own (hold a random token): an S3 answer may be lost, and then the content found
        decides.
        """
        return self._place.create(_clean(key), data)

    def open_write(self, key: str, *, durable: bool = True) -> AbstractContextManager[IO[bytes]]:
        """A file that becomes the object when the block ends well, and leaves no trace when it raises.

        `durable=False` is for what no run reads after a power cut: it saves waiting for the disk (fsync), 4 ms a file.
        """
        return self._place.open_write(_clean(key), durable=durable)

    def put_file(self, key: str, source: Path) -> None:
        """Copy a local file to the key atomically."""
        with source.open("rb") as reader, self.open_write(key) as writer:
            shutil.copyfileobj(reader, writer, _COPY_BYTES)

    def delete(self, key: str) -> None:
        """Delete one object; a missing one is no error (deleting twice is a retry, not a mistake)."""
        self._place.delete(_clean(key))

    def delete_tree(self, prefix: str = "") -> None:
        """Delete everything below a directory, itself included."""
        self._place.delete_tree(_clean(prefix))

    def sweep(self) -> None:
        """Delete temporary files that killed writers left; for the directory's owner, when nobody else writes."""
        self._place.sweep()

    def _missing(self, key: str) -> DataError:
        return DataError("no such file", got=f"{self.uri}/{key}")


def open_place(uri: str, *, is_local: bool) -> Place:
    """The place a URI means; no connection is made before its first use."""
    if is_local:
        return LocalFiles(uri)
    # Here and not above: s3fs and botocore cost half a second, which local runs do not need.
    from zscmr_ray.storage.s3 import S3Objects

    return S3Objects(uri)


def json_bytes(value: object) -> bytes:
    """A JSON document as stores hold it: sorted keys, two spaces, a final newline, no NaN."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _clean(key: str) -> str:
    parts = PurePosixPath(key).parts
    if key.startswith("/") or ".." in parts:
        raise DataError("a key must stay inside its store", got=key, expected="a relative path without '..'")
    return "/".join(parts)


def _is_temporary(key: str) -> bool:
    return PurePosixPath(key).name.startswith(TEMPORARY)
