"""A stage in a driver process of its own (`driver_main.py`): for killing it, or one of its workers, with SIGKILL."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from zscmr_ray.config import Config

_ROOT = Path(__file__).parents[2]


class Driver:
    """One driver; what Ray starts for it is in its session, and goes with it."""

    def __init__(
        self,
        stage: str,
        config: Config,
        *,
        log: Path | None = None,
        num_nodes: int = 1,
        lose_node: bool = False,
    ) -> None:
        arguments = [stage, config.model_dump_json(), str(num_nodes), str(int(lose_node))]
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(log.open("ab")) if log is not None else subprocess.DEVNULL
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.stages.driver_main", *arguments],
                cwd=_ROOT,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the driver itself."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """How it ended, or None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> int:
        """How it ended."""
        return self._process.wait(timeout_s)

    def workers(self) -> list[int]:
        """The worker processes of its Ray (its agents are parts of the node itself)."""
        found = [(pid, command) for pid, command in self._session() if command.startswith(b"ray::")]
        return sorted(pid for pid, command in found if b"Agent" not in command)

    def name(self, pid: int) -> str:
        """What a process of its session is."""
        commands = dict(self._session())
        return "driver" if pid == self.pid else commands.get(pid, b"gone").split(b"\0")[0].decode()

    def kill(self) -> None:
        """SIGKILL to the driver alone: its Ray sees that and ends, a moment later."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def end_session(self) -> None:
        """SIGKILL to all that is left."""
        for pid, _ in self._session():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _session(self) -> Iterator[tuple[int, bytes]]:
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            # A process may go between any two of these.
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                pid = int(folder.name)
                if os.getsid(pid) == self._process.pid:
                    yield pid, (folder / "cmdline").read_bytes()


@contextlib.contextmanager
def driving(
    stage: str, config: Config, *, log: Path | None = None, num_nodes: int = 1, lose_node: bool = False
) -> Iterator[Driver]:
    """A driver for the length of a block; nothing of it is left afterwards."""
    driver = Driver(stage, config, log=log, num_nodes=num_nodes, lose_node=lose_node)
    try:
        yield driver
    finally:
        driver.end_session()
