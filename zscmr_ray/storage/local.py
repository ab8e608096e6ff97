"""A directory on a local disk (or anything mounted): writes go to a temporary name and are renamed after fsync.

A full, unwritable or failing disk is said in our own words. Temporary files of a killed writer stay until the
directory's next owner sweeps them (`sweep`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from zscmr_ray.errors import StorageError
from zscmr_ray.storage.place import FileInfo

TEMPORARY = ".tmp-"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_AGAIN = "; then run the same command: it goes on where it stopped"


class LocalFiles:
    """The files below a directory."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def exists(self, key: str) -> bool:
        """Whether a file or directory is at the key."""
        with say_read_errors(self.root / key):
            return (self.root / key).exists()

    def is_file(self, key: str) -> bool:
        """Whether a file is at the key."""
        with say_read_errors(self.root / key):
            return (self.root / key).is_file()

    def info(self, key: str) -> FileInfo:
        """Size and version of a file."""
        with say_read_errors(self.root / key):
            return _file_info(key, (self.root / key).stat())

    def list(self, prefix: str) -> list[FileInfo]:
        """All files below a directory, temporary ones too."""
        with say_read_errors(self.root / prefix):
            return [info for path in self._files(prefix) if (info := self._info_if_there(path)) is not None]

    def open(self, key: str) -> BinaryIO:
        """Open a file for reading."""
        with say_read_errors(self.root / key):
            # Without waiting: nobody may ever write to a named pipe among the files; it is read as empty.
            return open(self.root / key, "rb", opener=_open_at_once)

    def read(self, key: str) -> bytes:
        """Read a whole file."""
        with say_read_errors(self.root / key):
            return (self.root / key).read_bytes()

    @contextlib.contextmanager
    def local_copy(self, key: str) -> Iterator[Path]:
        """The file itself."""
        yield self.root / key

    @contextlib.contextmanager
    def open_write(self, key: str, *, durable: bool = True) -> Iterator[IO[bytes]]:
        """A temporary file beside the key, renamed to it when the block ends well; `durable` outlives a power cut."""
        path = self.root / key
        with say_write_errors(path):
            temporary = self._temporary(path)
            try:
                with temporary.open("wb") as file:
                    yield file
                    file.flush()
                    if durable:
                        os.fsync(file.fileno())
                self._publish(temporary, path)
            except BaseException:
                self._remove(temporary)
                raise

    def create(self, key: str, data: bytes) -> bool:
        """Write a file only where none is: a link of the whole file fails where the name is taken."""
        path = self.root / key
        with say_write_errors(path):
            temporary = self._temporary(path)
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                return self._link(temporary, path)
            finally:
                self._remove(temporary)

    def delete(self, key: str) -> None:
        """Delete a file; a missing one is no error."""
        with say_write_errors(self.root / key):
            self._remove(self.root / key)

    def delete_tree(self, prefix: str) -> None:
        """Delete a directory and everything below it."""
        top = self.root / prefix
        with say_write_errors(top):
            for folder, folders, names in os.walk(top, topdown=False):
                for name in sorted(names):
                    self._remove(Path(folder, name))
                for name in sorted(folders):
                    self._remove_folder(Path(folder, name))
            self._remove_folder(top)

    def sweep(self) -> None:
        """Delete the temporary files of killed writers."""
        with say_write_errors(self.root):
            for path in self._files(""):
                if path.name.startswith(TEMPORARY):
                    self._remove(path)

    # -- the steps between which a process can die: tests count them (tests/chaos/) --------------------------------

    def _temporary(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex}")

    def _publish(self, temporary: Path, path: Path) -> None:
        temporary.replace(path)

    def _link(self, temporary: Path, path: Path) -> bool:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        return True

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def _remove_folder(self, path: Path) -> None:
        if path.is_symlink():
            path.unlink()
            return
        # Gone already, or another writer has put something into it meanwhile: both are no failure of deleting.
        with contextlib.suppress(FileNotFoundError):
            try:
                path.rmdir()
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise

    def _files(self, prefix: str) -> Iterator[Path]:
        # By default os.walk leaves out, without a word, what it may not read.
        for folder, _, names in os.walk(self.root / prefix, onerror=_raise_unless_gone):
            yield from (Path(folder, name) for name in names)

    def _info_if_there(self, path: Path) -> FileInfo | None:
        # A file may go between listing and stat: another process deletes or renames it. A link that leads nowhere
        # stays, so that whoever opens it finds the file missing.
        try:
            found = path.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            if not path.is_symlink():
                return None
            found = path.lstat()
        return _file_info(path.relative_to(self.root).as_posix(), found)


@contextlib.contextmanager
def say_write_errors(path: Path) -> Iterator[None]:
    """Say a full or unwritable disk as StorageError; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL | _REFUSED:
            raise
        is_full = error.errno in _FULL
        raise StorageError(
            "the disk is full" if is_full else "cannot write here",
            got=f"{path}: {error.strerror}",
            expected="free space (and quota)" if is_full else "a directory this user may write to",
            remedy=("free some space" if is_full else "change its permissions, or choose another directory")
            + _AGAIN,
        ) from error


@contextlib.contextmanager
def say_read_errors(path: Path) -> Iterator[None]:
    """Say what may not be read as StorageError; missing files and other errors pass."""
    try:
        yield
    except (PermissionError, IsADirectoryError) as error:
        raise StorageError(
            "cannot read this",
            got=f"{error.filename or path}: {error.strerror}",
            expected="files this user may read",
            remedy="change its permissions" + _AGAIN,
        ) from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _file_info(key: str, found: os.stat_result) -> FileInfo:
    return FileInfo(key=key, size_bytes=found.st_size, version=str(int(found.st_mtime * 1e9)))
