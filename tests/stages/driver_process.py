"""A stage in a driver process of its own, with its own small Ray: for killing it, or one of its workers, with SIGKILL."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from zscmr_ray.config import Config

_SCRIPT = """
import sys
from zscmr_ray.cli.session import exit_code_of, ray_session
from zscmr_ray.config import Config, RaySection
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.preprocess import run_preprocess
def run():
    config = Config.model_validate_json(sys.argv[2])
    with ray_session(RaySection(num_cpus=2, object_store_bytes=200_000_000)):
        {"preprocess": run_preprocess, "embed": run_embed}[sys.argv[1]](config)
sys.exit(exit_code_of(run))
"""


class Driver:
    """One driver; what Ray starts for it is in its session, and goes with it."""

    def __init__(self, stage: str, config: Config, *, log: Path | None = None) -> None:
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(log.open("ab")) if log is not None else subprocess.DEVNULL
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SCRIPT, stage, config.model_dump_json()],
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

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
def driving(stage: str, config: Config, *, log: Path | None = None) -> Iterator[Driver]:
    """A driver for the length of a block; nothing of it is left afterwards."""
    driver = Driver(stage, config, log=log)
    try:
        yield driver
    finally:
        driver.end_session()
