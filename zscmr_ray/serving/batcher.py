"""Batching that never waits: runs at once when idle, and takes whatever queued while it was busy.

One request alone pays no timer (`@serve.batch` waits its own); under load batches grow by themselves up to a cap. The
queue is bounded, in requests and in time: what would wait longer than `max_queue_s`, by how long recent batches took,
is refused at once. Work runs in a thread of the batcher's own, so that the event loop stays free; requests that were
cancelled (a deadline, a closed connection) are dropped before they cost anything.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from zscmr_ray.serving.metrics import Metrics

Item = TypeVar("Item")
Result = TypeVar("Result")
# Weight of the newest batch in the running mean of seconds an item.
_NEWEST = 0.2


class QueueFullError(Exception):
    """The queue is at its bound, or its wait would be; the caller answers 503 and when to come back."""


class Batcher(Generic[Item, Result]):
    """Submits of concurrent tasks become calls `run(items) -> results` of at most `max_batch_size` items, in order."""

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        name: str,
        max_batch_size: int,
        max_queued: int,
        max_queue_s: float = math.inf,
        metrics: Metrics | None = None,
    ) -> None:
        self._run, self._name = run, name
        self._max_batch_size, self._max_queued, self._max_queue_s = max_batch_size, max_queued, max_queue_s
        self._metrics = metrics or Metrics()
        self._queue: deque[tuple[Item, asyncio.Future[Result], float]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"zscmr-{name}")
        self._item_s = 0.0
        self._running_since: float | None = None
        self._running_items = 0

    async def submit(self, item: Item) -> Result:
        """Return the item's result; raises QueueFullError, or what `run` raised for this item."""
        # An empty queue takes a request however long the work is: a slow model still answers one after another.
        if len(self._queue) >= self._max_queued or (
            self._queue and self.expected_wait_s() > self._max_queue_s
        ):
            raise QueueFullError
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._queue.append((item, future, time.perf_counter()))
        self._metrics.queue_length(self._name, len(self._queue))
        if self._worker is None:
            self._worker = loop.create_task(self._drain())
        return await future

    def expected_wait_s(self) -> float:
        """Seconds until an item that comes now would begin, by the recent seconds an item."""
        wait_s = len(self._queue) * self._item_s
        if self._running_since is not None:
            left_s = self._running_items * self._item_s - (time.perf_counter() - self._running_since)
            wait_s += max(0.0, left_s)
        return wait_s

    @property
    def item_s(self) -> float:
        """Recent seconds an item."""
        return self._item_s

    @property
    def is_queue_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._queue

    def busy_s(self) -> float:
        """How long the batch that runs has run; 0 when none does. A wedged thread is seen by this."""
        return 0.0 if self._running_since is None else time.perf_counter() - self._running_since

    def close(self) -> None:
        """Let the thread end after the batch it runs."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _drain(self) -> None:
        try:
            while batch := self._take():
                await self._answer(batch)
        finally:
            self._worker = None

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        now_s = time.perf_counter()
        while self._queue and len(batch) < self._max_batch_size:
            item, future, since_s = self._queue.popleft()
            if not future.done():
                self._metrics.queued(self._name, now_s - since_s)
                batch.append((item, future))
        self._metrics.queue_length(self._name, len(self._queue))
        return batch

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        self._running_since, self._running_items = time.perf_counter(), len(batch)
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._run, [item for item, _ in batch]
            )
            assert len(results) == len(batch), f"{len(results)} results for {len(batch)} items"
        except Exception as error:
            if len(batch) > 1:
                # One bad item must not fail its neighbours: each is tried alone.
                for single in batch:
                    await self._answer([single])
            elif not batch[0][1].done():
                self._metrics.failed(self._name, error)
                batch[0][1].set_exception(error)
            return
        finally:
            took_s = self.busy_s()
            self._running_since = None
        self._measure(took_s, len(batch))
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)

    def _measure(self, took_s: float, size: int) -> None:
        item_s = took_s / size
        self._item_s = item_s if not self._item_s else (1 - _NEWEST) * self._item_s + _NEWEST * item_s
        self._metrics.batch(self._name, size, took_s)
