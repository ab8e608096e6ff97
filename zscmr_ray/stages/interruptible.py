"""Calls that may be interrupted although the library behind them would take the signal over.

Ray Train's `fit()` in the main thread replaces SIGINT's handler and ends the process with exit code 0, as if the training
had been done. In another thread it leaves signals alone. Not a way to run things at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def interruptible(call: Callable[[], Answer]) -> Answer:
    """Return what the call returns or raise what it raises; an interrupt is raised here, at once.

    The call is then left to end by itself: a daemon thread, for whose work the caller must no longer ask.
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
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]
