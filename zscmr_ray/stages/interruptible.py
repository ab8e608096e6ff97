"""Calls that may be interrupted although the library behind them would take the signal over.

Ray Train's `fit()` in the main thread replaces SIGINT's handler and ends the process with exit code 0, as if the training
had been done. In another thread it leaves signals alone. Not a way to run things at the same time.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from zscmr_ray.errors import TrainingError

Answer = TypeVar("Answer")
# A head with a standby comes back within this; after 60 s Ray ends the process without a word of ours.
LOST_AFTER_S = 40.0
_LOOK_EVERY_S, _CONNECT_S = 2.0, 5.0


def interruptible(call: Callable[[], Answer], *, watch: Callable[[], None] | None = None) -> Answer:
    """Return what the call returns or raise what it raises; an interrupt is raised here, at once.

    So is what `watch` raises, which is asked every two seconds. The call is then left to end by itself: a daemon thread,
    for whose work the caller must no longer ask.
    """
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        # Whatever it is: it belongs to the thread that waits.
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="zscmr-interruptible", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_EVERY_S)
        if watch is not None and thread.is_alive():
            watch()
    if errors:
        raise errors[0]
    return answers[0]


class ConnectionWatch:
    """Whether the cluster's head still answers: a driver whose cluster is gone must not wait for it without end."""

    def __init__(self, address: str, *, lost_after_s: float | None = None) -> None:
        host, _, port = address.rpartition(":")
        self._target, self.address = (host, int(port)), address
        self._lost_after_s = LOST_AFTER_S if lost_after_s is None else lost_after_s
        self._answered_s = time.monotonic()

    def __call__(self) -> None:
        """Raise TrainingError when the head has not answered for `LOST_AFTER_S`."""
        with contextlib.suppress(OSError), socket.create_connection(self._target, timeout=_CONNECT_S):
            self._answered_s = time.monotonic()
        silent_s = time.monotonic() - self._answered_s
        if silent_s > self._lost_after_s:
            raise TrainingError(
                "the connection to the cluster is lost",
                got=f"no answer from {self.address} for {silent_s:.0f} s",
                expected="a head node that answers",
                remedy="nothing up to the last resumable state is lost: when `ray status` answers again, or on another "
                "cluster, run the same command and it goes on from there",
            )
