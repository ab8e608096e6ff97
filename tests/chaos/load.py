"""Clients that search a service without a pause while something is done to it; what fails is kept."""

from __future__ import annotations

import threading
import time
from collections import Counter

from tests.serving.served import NUM_ITEMS
from zscmr_ray.client import Client


class Load:
    """Clients that ask one after the other, each in a thread, of a run of `make_served_run`.

    `longest_s` is the longest wait for an answer, `versions` counts answers by the index they are from, `num_retries` is what
    clients that have ended asked again.
    """

    def __init__(self, url: str) -> None:
        self.url, self.failures, self.num_done, self.longest_s = url, list[str](), 0, 0.0
        self.versions: Counter[str] = Counter()
        self.num_retries = 0
        self._ends: list[threading.Event] = []
        self._threads: list[threading.Thread] = []

    def is_ready(self) -> bool:
        with Client(self.url) as client:
            return client.ready(wait_s=0.5)

    def begin(self, count: int) -> None:
        for _ in range(count):
            ended = threading.Event()
            thread = threading.Thread(target=self._ask, args=(ended, len(self._threads)))
            self._ends.append(ended)
            self._threads.append(thread)
            thread.start()

    def end(self, count: int) -> None:
        for ended in self._ends[:count]:
            ended.set()
        for thread in self._threads[:count]:
            thread.join()

    def _ask(self, ended: threading.Event, number: int) -> None:
        # A deadline of no account: on a busy machine answers take long, and how long is not what is tested.
        with Client(self.url, timeout_s=120.0) as client:
            while not ended.is_set():
                number += 1
                text, since_s = f"caption {number % 2} of item {number % NUM_ITEMS}", time.monotonic()
                try:
                    found = client.search(text=text, target="text", k=1, deadline_ms=60_000)
                    assert [hit.caption for hit in found.results] == [text], found
                    assert found.coverage == 1.0, found
                    self.versions[found.index_version] += 1
                except Exception as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
                self.num_done += 1
                self.longest_s = max(self.longest_s, time.monotonic() - since_s)
        self.num_retries += client.num_retries
