"""One method over several class splits (and seeds): mean, spread, and an interval that resamples classes once for all.

What it is: arithmetic on conditions that `protocol.evaluate_method` gave with `keep_queries`. A class that is unseen in
several splits is drawn, or not, in all of them together: independent draws would make the interval too narrow. What it
is not: a test between methods (`paired.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zscmr_ray.retrieval.bootstrap import interval, resample_means
from zscmr_ray.retrieval.searches import DIRECTIONS

Conditions = Sequence[Mapping[str, Any]]
Sample = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


def mean_of_runs(runs: Conditions, *, num_resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Return map and chance (both directions' mean, averaged over the runs) and the 95% interval of the mean.

    A single run keeps its own interval, so that a table says what that run's report says.
    """
    averages = [run["average"] for run in runs]
    found = {name: float(np.mean([one[name] for one in averages])) for name in ("map", "chance")}
    if len(runs) == 1:
        return found | {"interval": list(averages[0]["interval"])}
    means = resample_means(_samples(runs), num_resamples=num_resamples, seed=seed)
    return found | {"interval": list(interval(np.mean(means, axis=0)))}


def over_splits(
    by_split: Mapping[str, Conditions], *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return `mean_of_runs` of all splits, each split alike, with `std` (None for one split) and `num_splits`.

    The runs of one split are its training seeds; every split must have as many, or the mean would favour some.
    """
    counts = {len(runs) for runs in by_split.values()}
    assert len(counts) == 1, f"splits with different numbers of seeds: {counts}"
    found = mean_of_runs(
        [run for runs in by_split.values() for run in runs], num_resamples=num_resamples, seed=seed
    )
    means = [float(np.mean([run["average"]["map"] for run in runs])) for runs in by_split.values()]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return found | {"std": spread, "num_splits": len(means)}


def _samples(runs: Conditions) -> list[Sample]:
    """AP and class code of every query, a sample for each run and direction; codes are those of all runs together."""
    names = sorted({name for run in runs for direction in DIRECTIONS for name in run[direction]["queries"]})
    code_of = {name: code for code, name in enumerate(names)}
    samples = []
    for run in runs:
        for direction in DIRECTIONS:
            queries = run[direction]["queries"]
            values = [np.asarray(scores, np.float64) for scores in queries.values()]
            codes = [np.full(len(scores), code_of[name]) for name, scores in queries.items()]
            samples.append((np.concatenate(values), np.concatenate(codes)))
    return samples
