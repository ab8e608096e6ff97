"""What this process holds in memory, as the kernel counts it; what a stage will need is in stages/plane/estimates.py."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


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
