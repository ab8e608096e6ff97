"""What a process holds of each index: at most two versions, the live one and one beside it, each loaded once.

What it is: a small store with a lock, for threads (the watcher loads) and event loops (requests pin). A version that is in
use is closed when its last request ends. What it is not: knowledge of what a version is made of (`load`), or of which one
is live (live.py).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from zscmr_ray.errors import RefusedError
from zscmr_ray.machine import available_bytes
from zscmr_ray.serving.releases import Release, Releases

MAX_VERSIONS = 2


class Closeable(Protocol):
    """What a shelf can hold."""

    def close(self) -> None:
        """Give back what it holds."""
        ...


Version = TypeVar("Version", bound=Closeable)


@dataclass
class _Place(Generic[Version]):
    version: Version
    pins: int = 0
    is_retired: bool = False


class Shelf(Generic[Version]):
    """Versions by index name and release id; `load` builds one, `need_bytes` says what it will take."""

    def __init__(
        self,
        releases: dict[str, Releases],
        load: Callable[[str, Release], Version],
        need_bytes: Callable[[str, Release], int],
    ) -> None:
        self._releases, self._load, self._need_bytes = releases, load, need_bytes
        # Oldest use first.
        self._held: dict[str, dict[str, _Place[Version]]] = {name: {} for name in releases}
        self._lock, self._loading = threading.Lock(), threading.Lock()

    def holds(self, index: str, release_id: str) -> bool:
        """Whether a version is here."""
        return release_id in self._held[index]

    def versions(self, index: str) -> list[str]:
        """The release ids that are here, the one used last at the end."""
        return list(self._held[index])

    def all(self) -> list[Version]:
        """Every version that is here."""
        with self._lock:
            return [place.version for held in self._held.values() for place in held.values()]

    def load(self, index: str, release_id: str) -> None:
        """Have a version here. Raises what loading raises, and RefusedError when memory does not suffice for it."""
        with self._loading:
            if self.holds(index, release_id):
                with self.pinned(index, release_id):
                    return
            release = self._releases[index].read(release_id)
            self._make_room(index, release)
            version = self._load(index, release)
            with self._lock:
                self._held[index][release_id] = _Place(version)

    @contextlib.contextmanager
    def pinned(self, index: str, release_id: str) -> Iterator[Version]:
        """A version that is here, not closed before the block ends; KeyError when it is not."""
        with self._lock:
            place = self._held[index].pop(release_id)
            self._held[index][release_id] = place
            place.pins += 1
        try:
            yield place.version
        finally:
            with self._lock:
                place.pins -= 1
                ends = place.is_retired and not place.pins
            if ends:
                place.version.close()

    def close(self) -> None:
        """Close every version that no request holds."""
        for index in self._held:
            while self._held[index]:
                self._retire_oldest(index)

    def _retire_oldest(self, index: str) -> None:
        with self._lock:
            place = self._held[index].pop(next(iter(self._held[index])))
            place.is_retired = True
            ends = not place.pins
        if ends:
            place.version.close()

    def _make_room(self, index: str, release: Release) -> None:
        """The first version has whatever there is: to serve slowly is better than not at all."""
        while len(self._held[index]) >= MAX_VERSIONS:
            self._retire_oldest(index)
        if not self._held[index]:
            return
        needed, available = self._need_bytes(index, release), available_bytes()
        if needed > available:
            raise RefusedError(
                "there is no memory for a second version",
                got=f"{available >> 20} MiB available",
                expected=f"{needed >> 20} MiB for {release.id}, beside the live version",
                remedy="give the replicas more memory, or restart the service with the new release",
            )
