"""What the kernel gives this process: CPUs, memory held and left, a container's limits among them.

What a stage needs is in stages/plane/estimates.py.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


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


def num_cpus() -> float:
    """Return the CPUs that this process may use: its affinity, and the quota of its container (cgroup v2)."""
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
    except OSError:
        return float(mask)
    return float(mask) if quota == "max" else min(float(mask), int(quota) / int(period))


def total_bytes() -> int:
    """Return the machine's memory, or the container's limit where that is less; the largest int where nobody says."""
    return min(_meminfo("MemTotal"), _limit_bytes())


def available_bytes() -> int:
    """Return what a process could take without swapping: the machine's, or the container's where that is less.

    Page cache counts as available. On systems without /proc there is no such number: the largest int.
    """
    return min(_meminfo("MemAvailable"), _container_bytes())


def _meminfo(name: str) -> int:
    try:
        meminfo = _MEMINFO.read_text()
    except FileNotFoundError:
        return sys.maxsize
    return int(meminfo.partition(f"{name}:")[2].split(maxsplit=1)[0]) << 10


def _limit_bytes() -> int:
    """The cgroup v2 limit, the largest int where there is none."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
    except OSError:
        return sys.maxsize
    return sys.maxsize if limit == "max" else int(limit)


def _container_bytes() -> int:
    """What is left of a cgroup v2 limit, its page cache counted as free."""
    limit = _limit_bytes()
    if limit == sys.maxsize:
        return limit
    used = int((_CGROUP / "memory.current").read_text())
    stat = (_CGROUP / "memory.stat").read_text()
    cache = int(stat.partition("inactive_file ")[2].split(maxsplit=1)[0])
    return limit - used + cache
