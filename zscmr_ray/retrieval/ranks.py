"""Ranks of the right gallery rows in each query's ranking: score descending, ties by a hash of the id.

What it is: exact ranks from one sort of plain floats a row (or none, for a few hits), which costs a fraction of sorting
64-bit keys that carry the tie order along; ties are settled afterwards, where a hit has any. What it is not: a metric
(`metrics.py`) or the tie order itself (`ordering.py`).
Legend: B queries of one block, N gallery, H hits (right gallery rows of all B, by row).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zscmr_ray.retrieval.ordering import FloatArray, require_finite, sort_keys
from zscmr_ray.retrieval.relevance import Hits

FEW_HITS = 8  # up to here, counting what is ahead of each hit beats a sort
FEW_TIES = 16  # up to here, settling each tied score beats sorting the row again with its tie order

Integers = npt.NDArray[np.int64]


def hit_ranks(similarity_BN: FloatArray, hits: Hits, *, ties_N: Integers) -> Integers:
    """Return the rank (from 1) of every hit, [H]: by row, ascending inside each; `ties_N` from `tie_ranks`.

    Raises DataError for scores that are not finite.

    >>> from zscmr_ray.retrieval.relevance import Relevance
    >>> right = Relevance(np.array([[True]]), np.array([[True], [False], [True], [False]]))
    >>> scores = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32)
    >>> hit_ranks(scores, right.hits(0, 1), ties_N=np.arange(4)).tolist()
    [1, 3]
    """
    require_finite(similarity_BN)
    own_H = similarity_BN[hits.row_H, hits.column_H]
    rank_H = np.empty(len(own_H), np.int64)
    stop_B = np.cumsum(hits.num_B)
    for row in np.flatnonzero(hits.num_B).tolist():
        own = slice(int(stop_B[row] - hits.num_B[row]), int(stop_B[row]))
        rank_H[own] = _row_ranks(similarity_BN[row], own_H[own], hits.column_H[own], ties_N)
    return rank_H


def _row_ranks(line_N: FloatArray, own_H: FloatArray, column_H: Integers, ties_N: Integers) -> Integers:
    """The ranks of one row's hits, ascending."""
    value_H = np.sort(own_H)
    find = _ranks_by_counting if len(value_H) <= FEW_HITS else _ranks_by_sorting
    rank_H, tied_H = find(line_N, value_H)
    if not tied_H.any():
        return rank_H[::-1]
    tied = np.unique(value_H[tied_H])
    if len(tied) > FEW_TIES:
        return _ranks_by_keys(line_N, column_H, ties_N)
    for value in tied:
        # Among equals the hash of the id decides: the hits' places there come after all that is ahead of them.
        ahead = np.count_nonzero(line_N > value)
        place = np.sort(ties_N[line_N == value])
        own = np.sort(ties_N[column_H[own_H == value]])
        rank_H[value_H == value] = (ahead + 1 + np.searchsorted(place, own))[::-1]
    return rank_H[::-1]


def _ranks_by_counting(line_N: FloatArray, value_H: FloatArray) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """The rank of each value from how many scores are above it, and whether another row has the same."""
    rank_H = np.array([1 + np.count_nonzero(line_N > value) for value in value_H], np.int64)
    same_H = np.array([np.count_nonzero(line_N == value) for value in value_H], np.int64)
    return rank_H, same_H > 1


def _ranks_by_sorting(line_N: FloatArray, value_H: FloatArray) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """The same from a sort of the row; `value_H` are of the row and ascend, which makes finding them cheap."""
    sorted_N = np.sort(line_N)
    upto_H = sorted_N.searchsorted(value_H, side="right")
    return 1 + len(line_N) - upto_H, (upto_H > 1) & (sorted_N[upto_H - 2] == value_H)


def _ranks_by_keys(line_N: FloatArray, column_H: Integers, ties_N: Integers) -> Integers:
    """The ranks from one sort that carries the tie order along, the relevance in the keys' lowest bit."""
    low_N = ties_N << 1
    low_N[column_H] |= 1
    keys_N = sort_keys(line_N[None], low_N[None])[0]
    keys_N.sort()
    return np.flatnonzero(keys_N & 1) + 1
