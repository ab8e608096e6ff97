"""What a training tells while it runs: metrics as JSON lines and TensorBoard events, and the warning of a collapse.

    metrics.jsonl   {"phase", "step", "epoch", "lr", "loss/total", ...}, {"event": ...}; rewritten whole, never torn
    tensorboard/    event files of the same numbers

Both are logs: they hold times, so they are no part of the stage's manifest.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from zscmr_ray.engine.scratch import scratch_folder
from zscmr_ray.errors import StorageError
from zscmr_ray.losses.fgcl import is_collapsed
from zscmr_ray.storage import Store

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"
WAITING_WARNING = 0.2
"""Share of the time that steps may wait for their data before it is said."""
_NOTICEABLE_MS = 5.0


class Telemetry:
    """The log of a training: only rank 0's is active. `lines` are a resumed run's, up to where it goes on."""

    def __init__(
        self,
        store: Store,
        *,
        lines: Sequence[str] = (),
        warned: bool = False,
        is_active: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self.store, self.lines, self.warned, self.is_active = store, list(lines), warned, is_active
        self._stream = stream or sys.stderr
        self._fgcl: list[float] = []
        self._collapse: list[float] = []
        self._warned_of_waiting = False
        self._scratch = contextlib.ExitStack()
        self._writer: Any = None

    def __enter__(self) -> Telemetry:
        # Imported here: it costs half a second, and only rank 0 of a training needs it.
        if not self.is_active:
            return self
        from torch.utils.tensorboard import SummaryWriter

        is_local = self.store.is_local
        self._folder = (
            Path(self.store.path(EVENTS)) if is_local else self._scratch.enter_context(scratch_folder())
        )
        self._writer = SummaryWriter(str(self._folder))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.is_active:
            return
        # What ended the training is the news, not that the log of it could not be written either.
        with contextlib.suppress(*(() if error is None else (StorageError,))):
            self.flush()
        self._writer.close()
        self._scratch.close()

    def scalars(self, *, phase: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Log numbers of a step; names are paths (`loss/fgcl`, `validation/map`)."""
        if not self.is_active:
            return
        self._append({"phase": phase, "step": step, "epoch": epoch} | values)
        for name, value in values.items():
            self._writer.add_scalar(f"{phase}/{name}", value, step)

    def event(self, name: str, *, phase: str, step: int, message: str) -> None:
        """Log something that happened, and say it."""
        if self.is_active:
            self._append({"event": name, "phase": phase, "step": step, "message": message})
        self.say(message)

    def say(self, message: str) -> None:
        """Say something to whoever watches (stderr, or the stream given)."""
        if self.is_active:
            print(f"train: {message}", file=self._stream, flush=True)

    def watch_collapse(self, parts: dict[str, float], *, phase: str, step: int) -> None:
        """Warn, once, when FGCL has sat at the value of identical embeddings for some time (SCIENCE 9)."""
        if self.warned or "fgcl" not in parts:
            return
        self._fgcl.append(parts["fgcl"])
        self._collapse.append(parts["collapse_value"])
        if not is_collapsed(self._fgcl, self._collapse):
            del self._fgcl[:-50], self._collapse[:-50]
            return
        self.warned = True
        self.event(
            "collapsed",
            phase=phase,
            step=step,
            message=(
                f"warning: at step {step} FGCL sits at {parts['fgcl']:.4f}, the value of identical embeddings "
                f"(m1 + w m2 = {parts['collapse_value']:.4f}): the region head has collapsed. Try a lower optim.lr, "
                "a smaller train.global_batch_size, or model.selection=mean"
            ),
        )

    def watch_waiting(self, rates: dict[str, float], *, phase: str, step: int) -> None:
        """Warn, once, when steps wait for data more than a fifth of the time, and 5 ms or more each."""
        waiting, ms_per_step = rates["speed/waiting_fraction"], rates["speed/ms_per_step"]
        if self._warned_of_waiting or waiting <= WAITING_WARNING or waiting * ms_per_step < _NOTICEABLE_MS:
            return
        self._warned_of_waiting = True
        self.event(
            "waiting",
            phase=phase,
            step=step,
            message=(
                f"warning: at step {step} {waiting:.0%} of the time is spent waiting for data ({ms_per_step:.0f} ms a "
                "step). Try a larger train.prefetch_steps, a faster disk under TMPDIR, a smaller model.region_grid, or "
                "fewer workers on a machine"
            ),
        )

    def flush(self) -> None:
        """Put the lines and the event files in the store."""
        if not self.is_active:
            return
        self.store.write_bytes(METRICS, "".join(line + "\n" for line in self.lines).encode())
        self._writer.flush()
        if not self.store.is_local:
            for path in sorted(self._folder.iterdir()):
                self.store.put_file(f"{EVENTS}/{path.name}", path)

    def _append(self, record: dict[str, Any]) -> None:
        self.lines.append(json.dumps(record, sort_keys=True))
