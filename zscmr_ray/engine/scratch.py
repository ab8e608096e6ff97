"""A temporary folder that outlives the beginning of a process's end."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder until the end of the block.

    Not tempfile's TemporaryDirectory, which empties itself when the process begins to end, under a thread that still writes,
    as Ray Train's does: a stopped job once left a state that was complete but for the engine's files.
    """
    folder = Path(tempfile.mkdtemp(prefix="zscmr-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
