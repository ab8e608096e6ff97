"""Batching that never waits: runs at once when idle, and takes whatever queued while it was busy.

One request alone pays no timer (`@serve.batch` waits its own); under load batches grow by themselves up to a cap. The
queue is bounded: beyond it a request is refused at once. Work runs in a thread of the batcher's own, so that the event
loop stays free; requests that were cancelled (a deadline, a closed connection) are dropped before they cost anything.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFullError(Exception):
    """The queue is at its bound; the caller answers 503 and when to come back."""


class Batcher(Generic[Item, Result]):
    """Submits of concurrent tasks become calls `run(items) -> results` of at most `max_batch_size` items, in order."""

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        name: str,
        max_batch_size: int,
        max_queued: int,
    ) -> None:
        self._run = run
        self._max_batch_size, self._max_queued = max_batch_size, max_queued
        self._queue: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"zscmr-{name}")

    async def submit(self, item: Item) -> Result:
        """Return the item's result; raises QueueFullError, or what `run` raised for this item."""
        if len(self._queue) >= self._max_queued:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._queue.append((item, future))
        if self._worker is None:
            self._worker = loop.create_task(self._drain())
        return await future

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
        while self._queue and len(batch) < self._max_batch_size:
            item, future = self._queue.popleft()
            if not future.done():
                batch.append((item, future))
        return batch

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
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
                batch[0][1].set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
