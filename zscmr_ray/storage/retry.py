"""How often and how long a storage operation is tried: exponential back-off with jitter, bounded in both.

One layer only: the retries that s3fs and botocore have of their own are switched off (`requests.py`), because theirs
multiply (25 attempts by default, but one for a refused connection) and know no total time. What stays below is
aiohttp's: a request whose connection broke is sent once more at once.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from zscmr_ray.errors import StorageError

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
# From this failed attempt on each is said: one or two are the daily life of an object store.
_SAID_FROM = 3


class TransientError(Exception):
    """An attempt failed for a reason that may pass: a timeout, a broken connection, a 5xx, throttling, a torn body."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of one operation. The defaults outlast a storage server that is restarted (a minute of waiting)."""

    max_attempts: int = 12
    max_total_s: float = 180.0
    first_wait_s: float = 0.2
    max_wait_s: float = 15.0

    def wait_s(self, failures: int, *, draw: float) -> float:
        """Seconds to wait after so many failures; `draw` in [0, 1) spreads clients that failed together.

        >>> policy = RetryPolicy(first_wait_s=0.2, max_wait_s=10)
        >>> [policy.wait_s(failures, draw=0.0) for failures in (1, 2, 3, 9)], policy.wait_s(1, draw=1.0)
        ([0.1, 0.2, 0.4, 5.0], 0.2)
        """
        whole = min(self.max_wait_s, self.first_wait_s * 2.0 ** (failures - 1))
        return whole * (0.5 + 0.5 * draw)


POLICY = RetryPolicy()


def with_retries(
    attempt: Callable[[], T],
    *,
    what: str,
    policy: RetryPolicy | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call until it returns; `what` names operation and object in messages.

    Raises StorageError when attempts or time are used up, and at once whatever else `attempt` raises.
    """
    policy = policy or POLICY
    begun = clock()
    failures = 0
    while True:
        try:
            return attempt()
        except TransientError as error:
            failures += 1
            wait_s = policy.wait_s(failures, draw=random.random())
            spent_s = clock() - begun
            if failures >= policy.max_attempts or spent_s + wait_s > policy.max_total_s:
                raise StorageError(
                    "the storage keeps failing",
                    got=f"{what}: {error}; {failures} attempts in {spent_s:.0f} s",
                    expected=f"an answer within {policy.max_attempts} attempts and {policy.max_total_s:.0f} s",
                    remedy="when the storage is well again, run the same command: it goes on where it stopped",
                ) from error
            if failures >= _SAID_FROM:
                _LOG.warning("%s: %s; attempt %d follows in %.1f s", what, error, failures + 1, wait_s)
            sleep(wait_s)
