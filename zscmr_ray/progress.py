"""Progress of a long stage with rate and remaining time: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

PLAIN_INTERVAL_S = 5.0


class Progress:
    """Counts rows, steps or parts of one stage.

    >>> with Progress("embed", total=2, unit="rows", stream=sys.stdout) as progress:
    ...     progress.advance(2)  # doctest: +ELLIPSIS
    embed: 2/2 rows, ... rows/s, done in ... s
    """

    def __init__(self, stage: str, *, total: int | None, unit: str, stream: TextIO | None = None) -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.done = 0
        self._stream = stream or sys.stderr
        self._started_s = self._printed_s = time.monotonic()
        self._bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.stage, total=self.total, rate="")
        return self

    def advance(self, count: int = 1, *, note: str = "") -> None:
        """Count some more; a note (a loss, a shard) is shown beside the rate."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, advance=count, rate=f"{self.rate_per_s:.1f} {self.unit}/s {note}")
        elif time.monotonic() - self._printed_s >= PLAIN_INTERVAL_S:
            self._printed_s = time.monotonic()
            self._print(f"{self._state()}, {self._remaining()}{', ' + note if note else ''}")

    def expect(self, total: int) -> None:
        """Set the total, or correct an estimate of it."""
        self.total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    @property
    def rate_per_s(self) -> float:
        """Mean rate since the start, in units per second."""
        return self.done / max(time.monotonic() - self._started_s, 1e-9)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elapsed_s = time.monotonic() - self._started_s
        self._print(f"{self._state()}, {'done' if kind is None else 'stopped'} in {elapsed_s:.1f} s")

    def _state(self) -> str:
        of_total = f"/{self.total}" if self.total is not None else ""
        return f"{self.done}{of_total} {self.unit}, {self.rate_per_s:.1f} {self.unit}/s"

    def _remaining(self) -> str:
        if self.total is None or self.done == 0:
            return "remaining time unknown"
        return f"{(self.total - self.done) / self.rate_per_s:.0f} s left"

    def _print(self, text: str) -> None:
        print(f"{self.stage}: {text}", file=self._stream, flush=True)
