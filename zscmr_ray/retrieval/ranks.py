"""Ranks of the right gallery rows in each query's ranking: score descending, ties by a hash of the id.

What it is: exact ranks from one sort of plain 32-bit numbers a row (or none, for a few hits), which costs a fraction of
sorting 64-bit keys that carry the tie order along. The lowest bit of each number says whether the row is right, so that the
hits are read off the sorted row; scores that are alike but for that bit are settled afterwards, where a hit has any. What it
is not: a metric (`metrics.py`) or the tie order itself (`ordering.py`).
Legend: B queries of one block, N gallery, H hits (right gallery rows of all B, by row).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zscmr_ray.retrieval.ordering import FloatArray, require_finite, sort_keys
from zscmr_ray.retrieval.relevance import Hits

FEW_HITS = 8  # up to here, counting what is ahead of each hit beats a sort
PIECE_ELEMENTS = 100_000  # scores sorted at once: they stay in the cache
FEW_TIES = 16  # up to here, settling each tied score beats sorting the row again with its tie order

Integers = npt.NDArray[np.int64]
Bits = npt.NDArray[np.int32]


def hit_ranks(similarity_BN: FloatArray, hits: Hits, *, ties_N: Integers) -> Integers:
    """Return the rank (from 1) of every hit, [H]: by row, ascending inside each; `ties_N` from `tie_ranks`.

    Raises DataError for scores that are not finite.

    >>> from zscmr_ray.retrieval.relevance import Relevance
    >>> right = Relevance(np.array([[True]]), np.array([[True], [False], [True], [False]]))
    >>> scores = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32)
    >>> hit_ranks(scores, right.hits(0, 1), ties_N=np.arange(4)).tolist()
    [1, 3]
    """
    many_B = hits.num_B > FEW_HITS
    if many_B.all():
        return _ranks_by_sorting(similarity_BN, hits, ties_N)
    require_finite(similarity_BN)
    rank_H = np.empty(len(hits.row_H), np.int64)
    stop_B = np.cumsum(hits.num_B)
    for row in np.flatnonzero((hits.num_B > 0) & ~many_B).tolist():
        own = slice(int(stop_B[row] - hits.num_B[row]), int(stop_B[row]))
        rank_H[own] = _ranks_by_counting(similarity_BN[row], hits.column_H[own], ties_N)
    if many_B.any():
        chosen_H = many_B[hits.row_H]
        row_H = (np.cumsum(many_B) - 1)[hits.row_H[chosen_H]]
        chosen = Hits(row_H, hits.column_H[chosen_H], hits.num_B[many_B])
        rank_H[chosen_H] = _ranks_by_sorting(similarity_BN[many_B], chosen, ties_N)
    return rank_H


def _ranks_by_counting(line_N: FloatArray, column_H: Integers, ties_N: Integers) -> Integers:
    """The ranks of one row's few hits, ascending, from how many scores are above each."""
    own_H = line_N[column_H]
    rank_H = np.array([1 + np.count_nonzero(line_N > value) for value in own_H], np.int64)
    for value in np.unique(own_H):
        same_N = line_N == value
        if np.count_nonzero(same_N) > 1:
            # Among equals the hash of the id decides: the hits' places there come after all that is ahead of them.
            here_H = own_H == value
            rank_H[here_H] += np.searchsorted(np.sort(ties_N[same_N]), ties_N[column_H[here_H]])
    return np.sort(rank_H)


def _ranks_by_sorting(similarity_BN: FloatArray, hits: Hits, ties_N: Integers) -> Integers:
    """The ranks of every row's hits, each row with at least one, from a sort of the rows."""
    num_rows, num_gallery = similarity_BN.shape
    step = max(1, PIECE_ELEMENTS // max(1, num_gallery))
    # One piece of memory for all: getting 4 MB from the system anew costs a third of their sort.
    memory_BN = np.empty((min(step, num_rows), num_gallery), np.float32)
    rank_H = np.empty(len(hits.row_H), np.int64)
    stop_B = np.cumsum(hits.num_B)
    for first in range(0, num_rows, step):
        last = min(first + step, num_rows)
        start_B = (stop_B - hits.num_B)[first:last]
        piece = slice(int(start_B[0]), int(stop_B[last - 1]))
        part = Hits(hits.row_H[piece] - first, hits.column_H[piece], hits.num_B[first:last])
        rank_H[piece] = _ranks_of_piece(
            similarity_BN[first:last], part, start_B - start_B[0], memory_BN[: last - first], ties_N
        )
    return rank_H


def _ranks_of_piece(
    similarity_BN: FloatArray, hits: Hits, start_B: Integers, sorted_BN: FloatArray, ties_N: Integers
) -> Integers:
    """The same for a few rows, whose hits start at `start_B`; `sorted_BN` is memory to work in."""
    num_gallery = similarity_BN.shape[1]
    # 0 - x: what is best comes first, and -0.0 ties with 0.0.
    np.subtract(np.float32(0), similarity_BN, out=sorted_BN)
    bits_BN: Bits = sorted_BN.view(np.int32)
    bits_BN &= np.int32(-2)
    bits_BN[hits.row_H, hits.column_H] |= np.int32(1)
    sorted_BN.sort(axis=1)
    # Infinities and NaN end up at an end of their row.
    if not np.isfinite(sorted_BN[:, [0, -1]]).all():
        require_finite(similarity_BN)
    bits_N: Bits = bits_BN.reshape(-1)
    place_H = _odd_places(bits_N)
    column_H = place_H - hits.row_H * num_gallery
    rank_H = column_H + 1
    value_H = bits_N[place_H]
    before_H = (bits_N[place_H - 1] | 1) == value_H
    after_H = (bits_N[np.minimum(place_H + 1, len(bits_N) - 1)] | 1) == value_H
    tied_H = (before_H & (column_H > 0)) | (after_H & (column_H < num_gallery - 1))
    # Without the lowest bit the smallest numbers are zero, of either sign: those scores are never side by side.
    zero_H = (value_H & np.int32(0x7FFFFFFF)) == 1
    tied_H |= zero_H
    for row in np.unique(hits.row_H[tied_H]).tolist():
        own = slice(int(start_B[row]), int(start_B[row] + hits.num_B[row]))
        tied = np.unique(value_H[own][tied_H[own]])
        line_N, right_H = similarity_BN[row], hits.column_H[own]
        if len(tied) > FEW_TIES or zero_H[own].any():
            rank_H[own] = _ranks_by_keys(line_N, right_H, ties_N)
            continue
        for value in tied:
            rank_H[own][value_H[own] == value] = _settled(line_N, sorted_BN[row], value, right_H, ties_N)
    return rank_H


def _odd_places(bits_N: Bits) -> Integers:
    """Where the lowest bit is set, ascending; few are. Looks at eight numbers at a time: faster than one by one."""
    whole = len(bits_N) // 8 * 8
    odd_N = bits_N[:whole].astype(np.uint8)
    odd_N &= np.uint8(1)
    eights = np.flatnonzero(odd_N.view(np.uint64) != 0)
    within = np.flatnonzero(odd_N.reshape(-1, 8)[eights].reshape(-1).view(np.bool_))
    rest = whole + np.flatnonzero(bits_N[whole:] & np.int32(1))
    return np.concatenate([eights[within >> 3] * 8 + (within & 7), rest])


def _settled(
    line_N: FloatArray, sorted_N: FloatArray, value: np.int32, column_H: Integers, ties_N: Integers
) -> Integers:
    """The ranks of one row's hits, ascending, whose score is `value` but for the lowest bit."""
    both = np.array([value, value & np.int32(-2)], np.int32).view(np.float32)
    columns = np.flatnonzero((line_N == -both[0]) | (line_N == -both[1]))
    ordered = columns[np.lexsort((ties_N[columns], -line_N[columns]))]
    right_N = np.zeros(len(line_N), np.bool_)
    right_N[column_H] = True
    ahead = int(np.searchsorted(sorted_N, both.min(), side="left"))
    ranks: Integers = ahead + 1 + np.flatnonzero(right_N[ordered])
    return ranks


def _ranks_by_keys(line_N: FloatArray, column_H: Integers, ties_N: Integers) -> Integers:
    """The ranks from one sort that carries the tie order along, the relevance in the keys' lowest bit."""
    low_N = ties_N << 1
    low_N[column_H] |= 1
    keys_N = sort_keys(line_N[None], low_N[None])[0]
    keys_N.sort()
    return np.flatnonzero(keys_N & 1) + 1
