"""Prefetching: in order, ahead but not too far, errors where they belong; and the clock's share of waiting."""

from __future__ import annotations

import threading

import pytest

from zscmr_ray.engine.prefetch import Clock, Prefetch


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_inputs_come_in_order_and_none_is_made_past_the_end(depth: int) -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step * step

    with Prefetch(make, first=4, until=9, depth=depth) as prefetch:
        assert [prefetch.take() for _ in range(4, 9)] == [16, 25, 36, 49, 64]
    assert made == [4, 5, 6, 7, 8]


def test_the_next_steps_are_made_while_one_is_worked_on() -> None:
    """Step 6, two ahead of the one taken, is made without anybody asking; step 7 is not."""
    made = [threading.Event() for _ in range(10)]
    with Prefetch(lambda step: made[step].set(), first=3, until=10, depth=3) as prefetch:
        prefetch.take()
        assert made[6].wait(timeout=60)
        assert not made[7].is_set()


def test_an_error_is_raised_at_its_step_and_leaving_early_ends_the_thread() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("step 2")
        return step

    with Prefetch(make, first=0, until=100, depth=4) as prefetch:
        assert [prefetch.take(), prefetch.take()] == [0, 1]
        with pytest.raises(ValueError, match="step 2"):
            prefetch.take()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("zscmr-prefetch")]


def test_waiting_is_the_time_that_inputs_were_not_there() -> None:
    ready = threading.Event()
    with Prefetch(lambda step: ready.wait(timeout=60), first=0, until=1, depth=1) as prefetch:
        threading.Timer(0.05, ready.set).start()
        clock = Clock()
        prefetch.take()
        clock.count(64)
        rates = clock.rates(waited_s=prefetch.waited_s)
    assert prefetch.waited_s >= 0.03
    assert 0 < rates["speed/waiting_fraction"] <= 1
    assert rates["speed/samples_per_s"] == pytest.approx(64_000 / rates["speed/ms_per_step"])
    clock.count(64)
    assert clock.rates(waited_s=prefetch.waited_s)["speed/waiting_fraction"] == 0
