"""What a run's rows have cost so far, for the lines at its end: the bottleneck, and how far off the estimate was.

Counts this driver's work from its start: chunks are decoded ahead of the first one that arrives, so that a later
beginning would leave out time and not the work. What earlier runs have done is not in it.
"""

from __future__ import annotations

import time
from typing import Any

from zscmr_ray.stages.plane.bottleneck import Usage, bottleneck_line, shares_of
from zscmr_ray.stages.plane.chunks import ChunkResult, Effort
from zscmr_ray.stages.plane.effort import total
from zscmr_ray.stages.plane.forecast import Probe, error_line, estimate_run
from zscmr_ray.stages.plane.resources import Fleet

# Fewer rows than a probe say nothing about a rate.
_MIN_ROWS = 200


class Ledger:
    """Rows, their effort and the seconds that commits were under way."""

    def __init__(self) -> None:
        self._effort = Effort()
        self._rows = 0
        self._commit_s = 0.0
        self._begun_s: dict[str, float] = {}
        self._started_s = time.monotonic()

    def add(self, result: ChunkResult) -> None:
        """Count a chunk that arrived for the first time."""
        self._rows += result.num_in
        self._effort = total(iter((self._effort, result.effort)))

    def begin_commits(self, part: str) -> None:
        """A task of commits is under way, known by its first part."""
        self._begun_s[part] = time.monotonic()

    def end_commits(self, part: str) -> None:
        """It has ended."""
        self._commit_s += time.monotonic() - self._begun_s.pop(part)

    def usage(self, fleet: Fleet) -> Usage | None:
        """The run as far as it can be judged; None where it was too short for that."""
        if self._rows < _MIN_ROWS:
            return None
        elapsed_s = time.monotonic() - self._started_s
        return Usage(self._rows, elapsed_s, self._effort, self._commit_s, fleet)


def end_lines(usage: Usage, probe: Probe | None) -> list[str]:
    """What the run's end says."""
    lines = [bottleneck_line(usage)]
    if probe is not None:
        estimate = estimate_run(probe, usage.fleet, usage.num_rows)
        lines.append(error_line(estimate, num_rows=usage.num_rows, elapsed_s=usage.elapsed_s))
    return lines


def end_note(usage: Usage) -> dict[str, Any]:
    """The same as numbers, for the stage's bookkeeping."""
    return {
        "rows": usage.num_rows,
        "elapsed_s": round(usage.elapsed_s, 2),
        "rows_per_s": round(usage.rows_per_s, 2),
        "shares": {share.step: round(share.share, 3) for share in shares_of(usage)},
        "ceilings_rows_per_s": {share.step: round(share.ceiling_rows_per_s, 1) for share in shares_of(usage)},
    }
