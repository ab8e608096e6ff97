"""The batcher: at once when idle, what queued meanwhile after that, bounded, and one bad item fails alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from zscmr_ray.serving.batcher import Batcher, QueueFullError


class Recorder:
    """Doubles its items; the first call waits until it is let go, so that others queue behind it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.began = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.began.set()
        assert self.go.wait(30)
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * item for item in items]


def batcher(run: Recorder, *, max_batch_size: int = 4, max_queued: int = 100) -> Batcher[int, int]:
    return Batcher(run, name="test", max_batch_size=max_batch_size, max_queued=max_queued)


async def first_runs(run: Recorder, batches: Batcher[int, int], item: int = 0) -> asyncio.Task[int]:
    task = asyncio.ensure_future(batches.submit(item))
    await asyncio.to_thread(run.began.wait, 30)
    return task


def test_the_first_runs_at_once_alone_and_the_rest_in_capped_batches_in_order() -> None:
    async def scenario() -> None:
        run = Recorder()
        batches = batcher(run)
        first = await first_runs(run, batches)
        assert run.batches == [[0]]
        rest = [asyncio.ensure_future(batches.submit(item)) for item in range(1, 10)]
        await asyncio.sleep(0)
        run.go.set()
        assert await asyncio.gather(first, *rest) == [2 * item for item in range(10)]
        assert run.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
        # Idle again: the next one starts a new worker.
        assert await batches.submit(21) == 42
        batches.close()

    asyncio.run(scenario())


def test_the_event_loop_stays_free_while_a_batch_runs() -> None:
    async def scenario() -> None:
        run = Recorder()
        batches = batcher(run)
        first = await first_runs(run, batches)
        # Reached only because the running batch does not hold the loop.
        assert not first.done()
        run.go.set()
        assert await first == 0
        batches.close()

    asyncio.run(scenario())


def test_a_full_queue_refuses_at_once() -> None:
    async def scenario() -> None:
        run = Recorder()
        batches = batcher(run, max_queued=2)
        first = await first_runs(run, batches)
        queued = [asyncio.ensure_future(batches.submit(item)) for item in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batches.submit(3)
        run.go.set()
        assert await asyncio.gather(first, *queued) == [0, 2, 4]
        batches.close()

    asyncio.run(scenario())


def test_a_bad_item_does_not_fail_its_neighbours() -> None:
    async def scenario() -> None:
        run = Recorder()
        batches = batcher(run)
        first = await first_runs(run, batches)
        rest = [asyncio.ensure_future(batches.submit(item)) for item in (1, 13, 2)]
        await asyncio.sleep(0)
        run.go.set()
        results = await asyncio.gather(first, *rest, return_exceptions=True)
        assert [results[0], results[1], results[3]] == [0, 2, 4]
        assert isinstance(results[2], ValueError)
        batches.close()

    asyncio.run(scenario())


def test_a_request_whose_deadline_passed_in_the_queue_is_never_run() -> None:
    async def scenario() -> None:
        run = Recorder()
        batches = batcher(run)
        first = await first_runs(run, batches)
        late = asyncio.ensure_future(batches.submit(5))
        kept = asyncio.ensure_future(batches.submit(6))
        await asyncio.sleep(0)
        late.cancel()
        await asyncio.sleep(0)
        run.go.set()
        assert await asyncio.gather(first, kept) == [0, 12]
        assert run.batches == [[0], [6]]
        batches.close()

    asyncio.run(scenario())


def test_what_would_wait_too_long_is_refused_and_an_empty_queue_takes_anything() -> None:
    async def scenario() -> None:
        run = Recorder()
        batches = Batcher(run, name="test", max_batch_size=1, max_queued=100, max_queue_s=1.0)
        first = await first_runs(run, batches)
        # As if recent items had taken ten seconds each.
        batches._item_s = 10.0
        second = asyncio.ensure_future(batches.submit(1))
        await asyncio.sleep(0)
        assert batches.expected_wait_s() > 1.0
        assert batches.busy_s() > 0
        with pytest.raises(QueueFullError):
            await batches.submit(2)
        run.go.set()
        assert await asyncio.gather(first, second) == [0, 2]
        assert batches.busy_s() == 0
        batches.close()

    asyncio.run(scenario())
