"""Lines that a remote worker says, printed by the driver as they are: progress, validations, warnings.

Ray's own forwarding of worker output is off (cli/session.py): it prefixes every line with a process and mixes in what
Ray's internal actors say. What it is not: a log of record (metrics.jsonl is) or a way to return results.
"""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_POLL_S = 0.5


class RemoteLines(io.TextIOBase):
    """The worker's end: a text stream whose complete lines travel to the driver, without waiting for it."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._rest = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return (RemoteLines, (self._queue,))

    def write(self, text: str) -> int:
        """Send what lines are complete; fire and forget, so that a lost driver never stops a step."""
        *lines, self._rest = (self._rest + text).split("\n")
        if lines:
            self._queue.actor.put_nowait_batch.remote(lines)
        return len(text)


@contextlib.contextmanager
def printed_lines() -> Iterator[RemoteLines]:
    """A stream for workers; while the block runs, what they write to it appears on this process's stderr."""
    # Beside the driver: another node may be lost, and with it what was said and whoever waits for it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    ended = threading.Event()
    printer = threading.Thread(target=_print, args=(queue, ended), name="zscmr-lines", daemon=True)
    printer.start()
    try:
        yield RemoteLines(queue)
    finally:
        ended.set()
        printer.join(timeout=10)
        queue.shutdown(force=True)


def _print(queue: Queue, ended: threading.Event) -> None:
    while True:
        # Asked before reading: what was written until then is still printed.
        is_last = ended.is_set()
        try:
            while True:
                print(queue.get(timeout=_POLL_S), file=sys.stderr, flush=True)
        except Empty:
            if is_last:
                return
        except RayError:
            # The queue's own node is lost, and so is the cluster: whoever waits for the workers hears of it.
            return
