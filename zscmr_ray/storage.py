"""Local paths and `s3://` behind one small vocabulary. The only file that imports fsspec or s3fs.

A `Store` is a directory somewhere; keys are relative, `/`-separated and never leave it. Writes are atomic: a
reader sees the whole object or none (a rename on a local disk, one put on S3). Credentials and the endpoint come
from the usual AWS environment variables only; they are never part of a URI, a configuration or a log line.

It is not a cache, a lock or a listing one may trust for completeness: `manifest.py` says what is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

import fsspec

from zscmr_ray.errors import ConfigError, DataError

_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, order=True)
class FileInfo:
    """One stored object: its key relative to the store, its size, and a version (ETag, or local mtime in ns)."""

    key: str
    size_bytes: int
    version: str


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
        self._fs: Any = None

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return (Store, (self.uri,))

    @property
    def fs(self) -> Any:
        """The fsspec filesystem, opened on first use."""
        if self._fs is None:
            # Listings are never cached: another process may have committed a part since.
            options = {} if self.is_local else {"use_listings_cache": False, "skip_instance_cache": True}
            self._fs = fsspec.filesystem("file" if self.is_local else "s3", **options)
        return self._fs

    def child(self, key: str) -> Store:
        """The store one or more directories below this one."""
        return Store(self.path(key)) if self.is_local else Store(f"{self.uri}/{_clean(key)}")

    def path(self, key: str = "") -> str:
        """The key's full path as fsspec and pyarrow name it (no scheme)."""
        base = self.uri if self.is_local else self.uri.removeprefix("s3://")
        return f"{base}/{_clean(key)}" if key else base

    # -- reading ------------------------------------------------------------------------------------------

    def exists(self, key: str = "") -> bool:
        """Whether an object, or a directory with something in it, is at the key."""
        return bool(self.fs.exists(self.path(key)))

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading; raises DataError when it is missing."""
        try:
            if self.is_local:
                return cast(BinaryIO, Path(self.path(key)).open("rb"))
            return cast(BinaryIO, self.fs.open(self.path(key), "rb"))
        except FileNotFoundError as error:
            raise DataError("no such file", got=f"{self.uri}/{key}") from error

    def read_bytes(self, key: str) -> bytes:
        """Read a whole object; raises DataError when it is missing."""
        if self.is_local:
            with self.open(key) as file:
                return file.read()
        try:
            return cast(bytes, self.fs.cat_file(self.path(key)))
        except FileNotFoundError as error:
            raise DataError("no such file", got=f"{self.uri}/{key}") from error

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
            return _file_info(key, self.fs.info(self.path(key)))
        except FileNotFoundError as error:
            raise DataError("no such file", got=f"{self.uri}/{key}") from error

    def list(self, prefix: str = "") -> list[FileInfo]:
        """All objects below a directory, sorted by key (empty when there is none). Temporary files are left out."""
        root = self.path(prefix)
        found = self.fs.find(root, detail=True)
        base = self.path()
        infos = [_file_info(path.removeprefix(base).lstrip("/"), entry) for path, entry in found.items()]
        # S3 servers may list the prefix itself or a folder marker; neither is an object of ours.
        return sorted(info for info in infos if _is_object(info.key))

    def sha256(self, key: str) -> str:
        """The hex sha256 of an object's contents, streamed."""
        digest = hashlib.sha256()
        with self.open(key) as file:
            while block := file.read(_COPY_BYTES):
                digest.update(block)
        return digest.hexdigest()

    @contextlib.contextmanager
    def local_copy(self, key: str) -> Iterator[Path]:
        """A local file with the object's contents: the object itself where it is local, else a temporary copy."""
        if self.is_local:
            yield Path(self.path(key))
            return
        with tempfile.TemporaryDirectory(prefix="zscmr-") as folder:
            target = Path(folder) / PurePosixPath(key).name
            self.fs.get_file(self.path(key), str(target))
            yield target

    # -- writing ------------------------------------------------------------------------------------------

    def write_bytes(self, key: str, data: bytes) -> None:
        """Put an object atomically, replacing what was there."""
        if not self.is_local:
            self.fs.pipe_file(self.path(key), data)
            return
        with self.open_write(key) as file:
            file.write(data)

    def write_json(self, key: str, value: object) -> None:
        """Put a JSON document (sorted keys, two spaces, a final newline) atomically."""
        text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        self.write_bytes(key, (text + "\n").encode())

    @contextlib.contextmanager
    def open_write(self, key: str) -> Iterator[IO[bytes]]:
        """A file that becomes the object when the block ends well, and leaves no trace when it raises."""
        if not self.is_local:
            # Spooled first: s3fs would commit a half-written upload when the block raises.
            with tempfile.TemporaryFile() as spool:
                yield spool
                spool.seek(0)
                with self.fs.open(self.path(key), "wb") as target:
                    shutil.copyfileobj(spool, target, _COPY_BYTES)
            return
        path = Path(self.path(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def put_file(self, key: str, source: Path) -> None:
        """Copy a local file to the key atomically."""
        with source.open("rb") as reader, self.open_write(key) as writer:
            shutil.copyfileobj(reader, writer, _COPY_BYTES)

    def delete(self, key: str) -> None:
        """Delete one object; a missing one is no error (deleting twice is a retry, not a mistake)."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(key))

    def delete_tree(self, prefix: str = "") -> None:
        """Delete everything below a directory, itself included."""
        path = self.path(prefix)
        if self.is_local:
            shutil.rmtree(path, ignore_errors=False) if Path(path).exists() else None
        elif self.fs.exists(path):
            self.fs.rm(path, recursive=True)


def _clean(key: str) -> str:
    parts = PurePosixPath(key).parts
    if key.startswith("/") or ".." in parts:
        raise DataError("a key must stay inside its store", got=key, expected="a relative path without '..'")
    return "/".join(parts)


def _is_object(key: str) -> bool:
    return bool(key) and not key.endswith("/") and not PurePosixPath(key).name.startswith(".tmp-")


def _file_info(key: str, entry: dict[str, Any]) -> FileInfo:
    # Local directories report mtime as float seconds; S3 objects carry an ETag.
    version = str(entry.get("ETag", "")).strip('"') or str(int(float(entry.get("mtime", 0)) * 1e9))
    return FileInfo(key=key, size_bytes=int(entry["size"]), version=version)
