"""Inputs of the next steps, made by a thread while a step runs, and the share of time that steps wait for them.

Inputs are a pure function of the step's number (engine/step.py), so that making them early changes nothing. Steps are
counted through epochs: the end of one is no stall. Not a cache, and nothing is kept over a restart.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Inputs = TypeVar("Inputs")


class Prefetch(Generic[Inputs]):
    """Makes the inputs of steps `first` to `until` (exclusive), at most `depth` of them ahead; 0 = when they are taken.

    One thread makes them in order. What it raises is raised where the step's inputs are taken.
    """

    def __init__(self, make: Callable[[int], Inputs], *, first: int, until: int, depth: int) -> None:
        self._make, self._depth = make, depth
        self._next, self._until = first, until
        self._ahead: deque[Future[Inputs]] = deque()
        self._thread = ThreadPoolExecutor(1, "zscmr-prefetch") if depth else None
        self.waited_s = 0.0

    def __enter__(self) -> Prefetch[Inputs]:
        self._fill()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def take(self) -> Inputs:
        """Return the inputs of the next step, waiting for them; the time goes to `waited_s`."""
        began_s = time.monotonic()
        if self._thread is None:
            inputs = self._make(self._next)
            self._next += 1
        else:
            inputs = self._ahead.popleft().result()
            self._fill()
        self.waited_s += time.monotonic() - began_s
        return inputs

    def _fill(self) -> None:
        while self._thread is not None and len(self._ahead) < self._depth and self._next < self._until:
            self._ahead.append(self._thread.submit(self._make, self._next))
            self._next += 1


class Clock:
    """Rates of the steps since the last reading."""

    def __init__(self) -> None:
        self._began_s, self._waited_s = time.monotonic(), 0.0
        self._steps, self._rows = 0, 0

    def count(self, num_rows: int) -> None:
        """Count a step of so many rows."""
        self._steps, self._rows = self._steps + 1, self._rows + num_rows

    def rates(self, *, waited_s: float) -> dict[str, float]:
        """Return samples/s, ms per step and the share of time waited, and begin anew; `waited_s` is a prefetch's."""
        now_s = time.monotonic()
        elapsed_s = max(now_s - self._began_s, 1e-9)
        found = {
            "speed/samples_per_s": self._rows / elapsed_s,
            "speed/ms_per_step": 1000.0 * elapsed_s / max(1, self._steps),
            "speed/waiting_fraction": (waited_s - self._waited_s) / elapsed_s,
        }
        self._began_s, self._waited_s, self._steps, self._rows = now_s, waited_s, 0, 0
        return found
