"""What a random ranking scores: exact expectations, to be printed beside every number.

What it is: closed forms over N gallery items of which R are relevant, every order equally likely. What it is not:
a simulation (the tests hold these against one).

Take one relevant item. Its rank k is uniform on 1..N, and each of the k-1 items before it is relevant with
probability (R-1)/(N-1); so the expected precision at its rank is (1 + (k-1)(R-1)/(N-1)) / k. Averaged over k, with
H_n = sum_{k<=n} 1/k:
    E[AP]   = H_N / N + (1 - H_N / N) (R-1)/(N-1)
    E[AP@R] = (H_R + (R - H_R) (R-1)/(N-1)) / N          (the same sum, cut at k = R)
    E[P@R]  = R / N.
First hit of m own items: P(rank > k) = C(N-m, k) / C(N, k).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


def expected_average_precision(num_relevant_Q: Counts, num_gallery: int) -> Values:
    """Return E[AP] of a random ranking for each query, [Q] in (0, 1]; NaN where nothing is relevant.

    Two of four relevant: H_4 / 4 = .5208 and E[AP] = .5208 + .4792 / 3.

    >>> expected_average_precision(np.array([2]), 4).round(4).tolist()
    [0.6806]
    """
    harmonic = _harmonic(num_gallery)[num_gallery] / max(1, num_gallery)
    expected_Q = harmonic + (1.0 - harmonic) * _others(num_relevant_Q, num_gallery)
    return _defined(expected_Q, num_relevant_Q)


def expected_average_precision_at_r(num_relevant_Q: Counts, num_gallery: int) -> Values:
    """Return E[AP@R] of a random ranking for each query, [Q]; NaN where nothing is relevant.

    >>> expected_average_precision_at_r(np.array([1]), 4).tolist()
    [0.25]
    """
    harmonic_Q = _harmonic(num_gallery)[num_relevant_Q]
    expected_Q = harmonic_Q + (num_relevant_Q - harmonic_Q) * _others(num_relevant_Q, num_gallery)
    return _defined(expected_Q / max(1, num_gallery), num_relevant_Q)


def expected_precision_at_r(num_relevant_Q: Counts, num_gallery: int) -> Values:
    """Return E[P@R] = R / N of a random ranking for each query, [Q]; NaN where nothing is relevant."""
    return _defined(num_relevant_Q / max(1, num_gallery), num_relevant_Q)


def expected_recall_at(num_own_Q: Counts, num_gallery: int, *, cutoffs: Sequence[int]) -> dict[int, float]:
    """Return the expected share of queries with a first hit within each cut-off, over queries with an own item.

    One own item in ten is within the first five half of the time; a cut-off above N is N.

    >>> expected_recall_at(np.array([1]), 10, cutoffs=(5, 20))
    {5: 0.5, 20: 1.0}
    """
    own, weights = _distinct(num_own_Q)
    if not len(own):
        return {cutoff: float("nan") for cutoff in cutoffs}
    missed_MK = _miss_probabilities(own, num_gallery)
    return {
        cutoff: float(1.0 - weights @ missed_MK[:, min(max(cutoff, 0), num_gallery)]) for cutoff in cutoffs
    }


def expected_median_rank(num_own_Q: Counts, num_gallery: int) -> float:
    """Return the rank by which half of the first hits of random rankings are expected; NaN without own items.

    It is the median of the rank's distribution pooled over the queries, midpoint where one half is hit exactly.

    >>> expected_median_rank(np.array([1]), 9), expected_median_rank(np.array([1]), 10)
    (5.0, 5.5)
    """
    own, weights = _distinct(num_own_Q)
    if not len(own):
        return float("nan")
    found_K = 1.0 - weights @ _miss_probabilities(own, num_gallery)
    low = int(np.argmax(found_K >= 0.5 - 1e-9))
    high = int(np.argmax(found_K > 0.5 + 1e-9))
    return (low + high) / 2.0


def _distinct(num_own_Q: Counts) -> tuple[Counts, Values]:
    own, counts = np.unique(num_own_Q[num_own_Q > 0], return_counts=True)
    return own.astype(np.int64), counts / max(1, counts.sum())


def _miss_probabilities(own_M: Counts, num_gallery: int) -> Values:
    """P(rank > k), k = 0..N: the product over i < k of (N - m - i) / (N - i)."""
    drawn_K = np.arange(num_gallery)
    left_MK = (
        np.maximum(num_gallery - own_M[:, None] - drawn_K[None, :], 0) / (num_gallery - drawn_K)[None, :]
    )
    return np.concatenate([np.ones((len(own_M), 1)), np.cumprod(left_MK, axis=1)], axis=1)


def _harmonic(count: int) -> Values:
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, count + 1))])


def _others(num_relevant_Q: Counts, num_gallery: int) -> Values:
    return np.asarray((num_relevant_Q - 1) / max(1, num_gallery - 1), np.float64)


def _defined(values_Q: Values, num_relevant_Q: Counts) -> Values:
    return np.where(num_relevant_Q > 0, values_Q, np.nan)
