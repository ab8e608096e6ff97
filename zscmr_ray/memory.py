"""Memory as the kernel counts it: held by this process, and left; a stage's need is in stages/plane/estimates.py."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def peak_rss_bytes() -> int:
    """Return the most resident memory this program has held.

    On Linux it is VmHWM: `ru_maxrss` outlives exec, so that a child would begin at the peak of its parent.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:  # Not Linux: macOS counts bytes, the BSDs kilobytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) << 10


def available_bytes() -> int:
    """Return what a process could take without swapping: the machine's, or the container's where that is less.

    Page cache counts as available. On systems without /proc there is no such number: the largest int.
    """
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except FileNotFoundError:
        return sys.maxsize
    machine = int(meminfo.partition("MemAvailable:")[2].split(maxsplit=1)[0]) << 10
    return min(machine, _container_bytes())


def _container_bytes() -> int:
    """What is left of a cgroup v2 limit, its page cache counted as free."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        stat = (_CGROUP / "memory.stat").read_text()
    except OSError:
        return sys.maxsize
    if limit == "max":
        return sys.maxsize
    cache = int(stat.partition("inactive_file ")[2].split(maxsplit=1)[0])
    return int(limit) - used + cache
