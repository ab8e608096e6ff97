"""How often and how long an operation is tried, with a clock of numbers."""

from __future__ import annotations

import pytest

from zscmr_ray.errors import DataError
from zscmr_ray.storage.retry import POLICY, RetryPolicy, TransientError, with_retries


class Clock:
    """Time that passes only in sleep and in the attempts."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waits_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, wait_s: float) -> None:
        self.waits_s.append(wait_s)
        self.now_s += wait_s


def failing(clock: Clock, num_failures: int, *, costs_s: float = 0.0) -> tuple[list[int], object]:
    calls: list[int] = []

    def attempt() -> str:
        calls.append(len(calls))
        clock.now_s += costs_s
        if len(calls) <= num_failures:
            raise TransientError("503 SlowDown")
        return "done"

    return calls, attempt


def test_waits_grow_with_jitter_and_are_capped() -> None:
    policy = RetryPolicy(first_wait_s=1, max_wait_s=5)
    for failures, whole in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (50, 5.0)):
        assert policy.wait_s(failures, draw=0.0) == whole / 2
        assert policy.wait_s(failures, draw=1.0) == whole


def test_what_fails_for_a_while_is_done() -> None:
    clock = Clock()
    calls, attempt = failing(clock, 3)
    assert with_retries(attempt, what="put x", clock=clock, sleep=clock.sleep) == "done"  # type: ignore[arg-type]
    assert len(calls) == 4
    assert len(clock.waits_s) == 3
    assert 0.7 <= sum(clock.waits_s) <= 1.4


def test_attempts_are_bounded_and_the_error_says_what_happened() -> None:
    clock = Clock()
    calls, attempt = failing(clock, 1000)
    with pytest.raises(DataError, match="the storage keeps failing") as caught:
        with_retries(attempt, what="put s3://b/x", clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]
    assert len(calls) == POLICY.max_attempts
    assert "put s3://b/x: 503 SlowDown; 12 attempts" in str(caught.value.got)
    assert caught.value.remedy and "same command" in caught.value.remedy
    assert len(clock.waits_s) == POLICY.max_attempts - 1


def test_the_total_time_is_bounded_where_attempts_are_slow() -> None:
    clock = Clock()
    calls, attempt = failing(clock, 1000, costs_s=70)
    with pytest.raises(DataError, match="3 attempts in 21"):
        with_retries(attempt, what="get x", clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]
    assert len(calls) == 3


def test_the_defaults_outlast_a_restart() -> None:
    waits = [POLICY.wait_s(failures, draw=0.0) for failures in range(1, POLICY.max_attempts)]
    assert 30 <= sum(waits) <= 90


def test_other_errors_are_not_retried() -> None:
    calls: list[int] = []

    def attempt() -> None:
        calls.append(1)
        raise FileNotFoundError("x")

    with pytest.raises(FileNotFoundError):
        with_retries(attempt, what="get x")
    assert calls == [1]
