"""The embed stage and bare loops in turns of 1.5 s, the others stopped (SIGSTOP) meanwhile: rates of one machine.

A virtual machine's own speed drifts by a third within a minute: whole runs one after another gave shares from .83 to 1.16
of the same program. Here all have the same minutes. A rate is rows over the seconds of the own turns.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from corpus import DROPPED
from embed_rates import run_anew

from zscmr_ray.config import Config

TURN_S = 1.5
_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Rates:
    """Rows/s in the own turns: of our stage, and of each bare loop by its name; and how many turns each had."""

    ours: float
    bare: dict[str, float]
    num_turns: int


@dataclass
class _Bare:
    """A loop's processes and the rows they have done together."""

    processes: list[BaseProcess]
    counts: list[Any]
    seconds: float = 0.0
    rows: int = 0

    @property
    def done(self) -> int:
        return sum(count.value for count in self.counts)


class _Results:
    """What a bare loop reports to, in the place of a queue."""

    def __init__(self, count: Any) -> None:
        self.count = count

    def put(self, arrival: tuple[float, int]) -> None:
        self.count.value += arrival[1]


@dataclass
class _Ours:
    """Our stage in a process of its own with its own Ray: arrivals, and the seconds in which it was stopped."""

    process: BaseProcess
    arrivals: Any
    num_rows: int
    seen: int = 0
    began_s: float | None = None
    ended_s: float | None = None
    num_measured: int = 0
    stopped: list[tuple[float, float]] = field(default_factory=list)
    tree: list[int] = field(default_factory=list)

    def look(self) -> None:
        """Take what has arrived."""
        while self.ended_s is None and self.arrivals.poll():
            at_s, rows = self.arrivals.recv()
            if rows is None:
                self.ended_s = at_s
                continue
            self.seen += rows
            if self.began_s is None and self.seen >= DROPPED * self.num_rows:
                self.began_s, self.num_measured = at_s, self.num_rows - self.seen

    @property
    def rate(self) -> float:
        assert self.began_s is not None and self.ended_s is not None
        stopped_s = sum(end - start for start, end in self.stopped)
        return self.num_measured / (self.ended_s - self.began_s - stopped_s)


def rates_in_turns(
    config: Config,
    bare: dict[str, tuple[Callable[..., None], list[Any], dict[str, Any]]],
    *,
    num_rows: int,
) -> Rates:
    """Embed `num_rows` anew, and in its steady state let each bare loop have turns as long as ours.

    A loop is a worker for `embed_rates.run_bare`, the shares of its processes, which must not run out, and its options.
    """
    with contextlib.ExitStack() as stack:
        loops = {name: stack.enter_context(_started(*loop)) for name, loop in bare.items()}
        receive, send = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_run_ours, args=(config, num_rows, send))
        process.start()
        stack.callback(_end, [process])
        send.close()
        ours = _Ours(process, receive, num_rows)
        while ours.began_s is None and process.is_alive():
            ours.look()
            time.sleep(0.02)
        num_turns = 0
        while ours.ended_s is None and process.is_alive():
            _one_round(ours, list(loops.values()))
            num_turns += 1
        process.join()
        ours.look()
        return Rates(ours.rate, {name: loop.rows / loop.seconds for name, loop in loops.items()}, num_turns)


def _one_round(ours: _Ours, loops: list[_Bare]) -> None:
    """A turn for each loop while our stage is stopped, then one for it, or until it ends."""
    assert ours.process.pid is not None
    stopped_s = time.monotonic()
    _signal(ours.tree, signal.SIGSTOP)
    # Found now, and not in our turn: it takes 2 ms. What was begun since the last turn goes on for so long.
    ours.tree = _tree(ours.process.pid)
    _signal(ours.tree, signal.SIGSTOP)
    for loop in loops:
        pids = [process.pid for process in loop.processes if process.pid is not None]
        before, started_s = loop.done, time.monotonic()
        _signal(pids, signal.SIGCONT)
        time.sleep(TURN_S)
        _signal(pids, signal.SIGSTOP)
        loop.seconds += time.monotonic() - started_s
        loop.rows += loop.done - before
        assert all(process.is_alive() for process in loop.processes), "a bare loop ran out of work"
    _signal(ours.tree, signal.SIGCONT)
    ours.stopped.append((stopped_s, time.monotonic()))
    ends_s = time.monotonic() + TURN_S
    while time.monotonic() < ends_s and ours.ended_s is None and ours.process.is_alive():
        ours.look()
        time.sleep(0.02)


def _run_ours(config: Config, num_rows: int, arrivals: Any) -> None:
    run_anew(config, num_rows=num_rows, arrived=lambda at_s, rows: arrivals.send((at_s, rows)))


@contextlib.contextmanager
def _started(worker: Callable[..., None], shares: list[Any], options: dict[str, Any]) -> Iterator[_Bare]:
    """A loop that has begun its work, and is stopped."""
    counts = [_CONTEXT.Value("q", 0, lock=False) for _ in shares]
    loop = _Bare(
        [
            _CONTEXT.Process(target=worker, args=(share, _Results(count)), kwargs=options, daemon=True)
            for share, count in zip(shares, counts, strict=True)
        ],
        counts,
    )
    for process in loop.processes:
        process.start()
    try:
        while not all(count.value for count in counts):
            assert all(process.is_alive() for process in loop.processes)
            time.sleep(0.02)
        _signal([process.pid for process in loop.processes if process.pid is not None], signal.SIGSTOP)
        yield loop
    finally:
        _end(loop.processes)


def _end(processes: list[BaseProcess]) -> None:
    for process in processes:
        if process.is_alive() and process.pid is not None:
            _signal(_tree(process.pid), signal.SIGCONT)
            process.terminate()
        process.join()


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                # The command's name, in brackets, may hold anything.
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                parents.setdefault(int(parent), []).append(int(folder.name))
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found
