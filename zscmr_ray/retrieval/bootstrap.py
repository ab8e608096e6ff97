"""Intervals for a mean over queries: classes are resampled first, then queries inside each (SCIENCE 4).

What it is: a two-stage bootstrap on numbers already computed per query, so it costs no retrieval. What it is not: a
statement about other training seeds or class splits (report several of those). Resampling queries alone would give
intervals several times too narrow: a zero-shot result varies by which classes were held out.

Samples given together share the class draws, so that the interval of (image->text + text->image) / 2 respects that
both directions ask about the same classes. The paired test of issue C permutes `metrics.per_class_means`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

CHUNK_DRAWS = 4_000_000  # query draws held at once: 32 MB of indices


def resample_means(
    samples: Sequence[tuple[Values, Codes]], *, num_resamples: int = 1000, seed: int = 0
) -> list[Values]:
    """Return for each sample of (values_Q, class_Q) the mean of every resample, float64[num_resamples].

    `class_Q` are non-negative class codes, comparable across the samples; queries with a NaN value are left out.
    A class absent from one sample adds nothing to it; a resample without any query is NaN.

    >>> means, = resample_means([(np.array([1.0, 1.0, 1.0]), np.array([0, 0, 1]))], num_resamples=3)
    >>> means.tolist()
    [1.0, 1.0, 1.0]
    """
    kept = [(values[np.isfinite(values)], codes[np.isfinite(values)]) for values, codes in samples]
    classes = np.unique(np.concatenate([codes for _, codes in kept])) if kept else np.zeros(0, np.int64)
    if not len(classes):
        return [np.full(num_resamples, np.nan) for _ in samples]
    rng = np.random.default_rng(seed)
    draws_SC = rng.multinomial(len(classes), np.full(len(classes), 1.0 / len(classes)), size=num_resamples)
    return [_one_sample(values, codes, classes, draws_SC, rng) for values, codes in kept]


def interval(means_S: Values, *, level: float = 0.95) -> tuple[float, float]:
    """Return the central percentile interval of the resampled means; (NaN, NaN) if none is defined.

    >>> interval(np.arange(5.0), level=0.5)
    (1.0, 3.0)
    """
    defined_S = means_S[np.isfinite(means_S)]
    if not len(defined_S):
        return (float("nan"), float("nan"))
    low, high = np.quantile(defined_S, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return (float(low), float(high))


def harmonic_mean(seen: float, unseen: float) -> float:
    """Return H = 2 S U / (S + U), 0 where both are 0.

    >>> harmonic_mean(0.6, 0.3)
    0.4
    """
    return 2.0 * seen * unseen / (seen + unseen) if seen + unseen > 0 else seen + unseen


def _one_sample(
    values_Q: Values,
    codes_Q: Codes,
    classes_C: Codes,
    draws_SC: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> Values:
    sums_S = np.zeros(len(draws_SC))
    counts_S = np.zeros(len(draws_SC))
    order_Q = np.argsort(codes_Q, kind="stable")
    start_C = np.searchsorted(codes_Q[order_Q], classes_C, side="left")
    stop_C = np.searchsorted(codes_Q[order_Q], classes_C, side="right")
    for column, (start, stop) in enumerate(zip(start_C, stop_C, strict=True)):
        if stop == start:
            continue
        own_Q = values_Q[order_Q[start:stop]]
        # One row per time the class was drawn: each draw resamples its queries anew.
        resample_T = np.repeat(np.arange(len(draws_SC)), draws_SC[:, column])
        step = max(1, CHUNK_DRAWS // len(own_Q))
        for first in range(0, len(resample_T), step):
            part_T = resample_T[first : first + step]
            totals_T = own_Q[rng.integers(0, len(own_Q), size=(len(part_T), len(own_Q)))].sum(1)
            sums_S += np.bincount(part_T, totals_T, minlength=len(draws_SC))
        counts_S += draws_SC[:, column] * len(own_Q)
    with np.errstate(invalid="ignore"):
        return np.where(counts_S > 0, sums_S / np.maximum(counts_S, 1), np.nan)
