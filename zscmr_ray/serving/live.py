"""Which version of each index answers: opened with the service, then changed under load when the alias changes.

What it is: a watcher thread that reads each run's alias, loads what it names beside what answers, and only then switches
(one assignment: a request reads it once). What cannot be loaded never goes live: the last good version goes on, and the
reason is in the log, in the metrics and in /v1/indexes until the alias names something else. What it is not: HTTP, or the
writing of aliases (releases.py).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from zscmr_ray.errors import ZscmrError
from zscmr_ray.serving.logs import log_event
from zscmr_ray.serving.metrics import Metrics
from zscmr_ray.serving.problems import ProblemError
from zscmr_ray.serving.releases import Release, Releases
from zscmr_ray.serving.shelf import Shelf
from zscmr_ray.serving.version import IndexVersion

_LOG = logging.getLogger(__name__)


class Indexes(Protocol):
    """What the service asks: a pinned version of an index, the names, and what could not go live."""

    def pinned(self, index: str) -> contextlib.AbstractContextManager[IndexVersion]:
        """The version that answers now, for the length of one request; ProblemError 422 for an unknown index."""
        ...

    def names(self) -> list[str]:
        """The names of the indexes, the default one first."""
        ...

    def problem(self, index: str) -> str | None:
        """Why the alias's release is not the one that answers, or None."""
        ...

    def close(self) -> None:
        """Close what no request holds."""
        ...


class LiveIndexes:
    """The live version of every index. `prepare` has other processes load a release before it is switched to."""

    def __init__(
        self,
        releases: dict[str, Releases],
        shelf: Shelf[IndexVersion],
        metrics: Metrics,
        *,
        prepare: Callable[[str, Release], None] | None = None,
    ) -> None:
        self._releases, self._shelf, self._metrics = releases, shelf, metrics
        self._prepare = prepare
        self._live: dict[str, str] = {}
        # What an alias names that could not go live, and why.
        self._refused: dict[str, tuple[str, str]] = {}
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None

    def open(self) -> None:
        """Load the live release of every index, or the newest former one that is whole. Raises when there is none."""
        for index, releases in self._releases.items():
            alias = releases.require_alias()
            errors: list[ZscmrError] = []
            for release_id in (alias.live, *alias.former):
                try:
                    # Others load their live release as they start; Serve builds us in a loop that may not wait for them.
                    self._switch(index, release_id, prepare=None)
                    break
                except ZscmrError as error:
                    self._refuse(index, release_id, error)
                    errors.append(error)
            else:
                raise errors[0]
            if errors:
                self._refused[index] = (alias.live, str(errors[0]))

    def watch(self, every_s: float) -> None:
        """Look at the aliases from now on, in a thread of its own."""
        self._watcher = threading.Thread(target=self._look, args=(every_s,), name="zscmr-alias", daemon=True)
        self._watcher.start()

    def refresh(self) -> None:
        """Look at every alias once; what fails is said and leaves what answers as it is."""
        for index, releases in self._releases.items():
            try:
                wanted = releases.require_alias().live
            except (ZscmrError, OSError) as error:
                self._refuse(index, "alias", error)
                continue
            if wanted == self._live[index]:
                self._refused.pop(index, None)
            elif self._refused.get(index, ("", ""))[0] != wanted:
                try:
                    self._switch(index, wanted, prepare=self._prepare)
                except Exception as error:
                    self._refuse(index, wanted, error)

    @contextlib.contextmanager
    def pinned(self, index: str) -> Iterator[IndexVersion]:
        """The version that answers now, for the length of one request; ProblemError 422 for an unknown index."""
        if index not in self._live:
            raise ProblemError(422, "no such index", got=index, expected=", ".join(sorted(self._live)))
        with self._shelf.pinned(index, self._live[index]) as version:
            yield version

    def names(self) -> list[str]:
        """The names of the indexes, the default one first."""
        return list(self._live)

    def release_of(self, index: str) -> str:
        """The id of the release that answers."""
        return self._live[index]

    def problem(self, index: str) -> str | None:
        """Why the alias's release is not the one that answers, or None."""
        refused = self._refused.get(index)
        return None if refused is None else f"{refused[0]} is not live: {refused[1]}"

    def close(self) -> None:
        """End the watcher and close what no request holds."""
        self._ended.set()
        if self._watcher is not None:
            self._watcher.join()
        self._shelf.close()

    def _look(self, every_s: float) -> None:
        while not self._ended.wait(every_s):
            self.refresh()

    def _switch(self, index: str, release_id: str, *, prepare: Callable[[str, Release], None] | None) -> None:
        release = self._releases[index].read(release_id)
        self._shelf.load(index, release_id)
        if prepare is not None:
            prepare(index, release)
        former, self._live[index] = self._live.get(index), release_id
        self._refused.pop(index, None)
        self._metrics.live(index, version=release.index_version, model=release.model_fingerprint)
        self._metrics.swapped(index, result="live")
        log_event(_LOG, "index is live", index=index, release=release_id, former=former)

    def _refuse(self, index: str, release_id: str, error: Exception) -> None:
        if self._refused.get(index) == (release_id, str(error)):
            return
        self._refused[index] = (release_id, str(error))
        self._metrics.swapped(index, result="refused")
        log_event(
            _LOG,
            "release refused, the last good one stays",
            level=logging.ERROR,
            index=index,
            release=release_id,
            live=self._live.get(index),
            reason=str(error),
        )


class FixedIndex:
    """One version as the only index, without releases: for tests, benchmarks and notebooks."""

    def __init__(self, version: IndexVersion) -> None:
        self._version = version

    def pinned(self, index: str) -> contextlib.AbstractContextManager[IndexVersion]:
        """The version; ProblemError 422 for an unknown index."""
        if index != self._version.index:
            raise ProblemError(422, "no such index", got=index, expected=self._version.index)
        return contextlib.nullcontext(self._version)

    def names(self) -> list[str]:
        """The one name."""
        return [self._version.index]

    def problem(self, index: str) -> str | None:
        """None: nothing changes."""
        return None

    def close(self) -> None:
        """Close the version."""
        self._version.close()
