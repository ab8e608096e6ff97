"""Storage that dies before its k-th change of anything on disk or S3, or half-way through it: every crash point of a job.

Death is `Died`, which no code of ours catches, and after it every further change raises it again: a dead process does
not clean up. The next life is another driver to the lease.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zscmr_ray import lease
from zscmr_ray.storage import s3, store
from zscmr_ray.storage.local import LocalFiles
from zscmr_ray.storage.place import Place

_CHANGES = {
    "put_object", "delete_object", "create_multipart_upload", "upload_part", "complete_multipart_upload",
    "abort_multipart_upload",
}  # fmt: skip
_lives = 0


class Died(BaseException):
    """The process is gone."""


class Life:
    """One run of a job; dies before the change with this number (from 0), or never."""

    def __init__(self, dies_at: int | None = None) -> None:
        global _lives
        _lives += 1
        self.name = f"life {_lives} 0"
        self.dies_at = dies_at
        self.changes: list[str] = []
        self.is_dead = False
        self._lock = threading.Lock()

    def change(self, what: str, *, half: Callable[[], object] | None = None) -> None:
        """Count one change that is about to happen; `half` does a part of it, should this life end here."""
        with self._lock:
            if self.is_dead:
                raise Died
            if len(self.changes) == self.dies_at:
                if half is not None:
                    half()
                self.is_dead = True
                raise Died
            self.changes.append(what)


class DyingFiles(LocalFiles):
    """Local files of one life."""

    def __init__(self, root: str, life: Life) -> None:
        super().__init__(root)
        self._life = life

    def _temporary(self, path: Path) -> Path:
        if self._life.is_dead:
            raise Died
        return super()._temporary(path)

    def _publish(self, temporary: Path, path: Path) -> None:
        self._write(temporary, path)
        self._life.change(f"rename {path.name}")
        super()._publish(temporary, path)

    def _link(self, temporary: Path, path: Path) -> bool:
        self._write(temporary, path)
        self._life.change(f"link {path.name}")
        return super()._link(temporary, path)

    def _write(self, temporary: Path, path: Path) -> None:
        # Everything is written by now; a death in the middle of it left the first half.
        half = lambda: temporary.write_bytes(temporary.read_bytes()[: temporary.stat().st_size // 2])  # noqa: E731
        self._life.change(f"write {path.name}", half=half)

    def _remove(self, path: Path) -> None:
        if self._life.is_dead or path.exists():
            self._life.change(f"unlink {path.name}")
        super()._remove(path)

    def _remove_folder(self, path: Path) -> None:
        if self._life.is_dead or path.exists():
            self._life.change(f"rmdir {path.name}")
        super()._remove_folder(path)


@contextlib.contextmanager
def living(life: Life) -> Iterator[Life]:
    """All of this process belongs to this life for the length of a block: its storage, and what the lease sees."""
    with storage_of(life), pytest.MonkeyPatch.context() as patch:
        # To the lease each life is a process, and all former ones have ended.
        patch.setattr(lease, "_process_name", lambda: life.name)
        patch.setattr(lease, "_is_gone", lambda process: process != life.name)
        # Notes that are due by the clock would number the changes by the machine's load.
        patch.setattr(lease, "NOTE_S", math.inf)
        patch.setattr(lease, "RENEW_S", threading.TIMEOUT_MAX)
        yield life


@contextlib.contextmanager
def storage_of(life: Life) -> Iterator[None]:
    """All stores of this process are as mortal as this life for the length of a block."""
    send = s3.request

    def request(method: str, **arguments: Any) -> dict[str, Any]:
        if method in _CHANGES:
            life.change(f"{method} {arguments['Key']}")
        if method == "delete_objects":
            objects = arguments["Delete"]["Objects"]
            some = {**arguments, "Delete": {"Objects": objects[: len(objects) // 2], "Quiet": True}}
            life.change("delete none of a batch")
            life.change("delete half a batch", half=lambda: len(objects) > 1 and send(method, **some))
        return send(method, **arguments)

    def open_place(uri: str, *, is_local: bool) -> Place:
        return DyingFiles(uri, life) if is_local else s3.S3Objects(uri)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "open_place", open_place)
        patch.setattr(s3, "request", request)
        yield
