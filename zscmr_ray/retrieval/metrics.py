"""Retrieval metrics over a whole gallery: mAP@all, mAP@R, P@R, precision-recall, and rank of the first hit.

What it is: numbers per query from two sets of vectors, in blocks of queries, so that memory is bounded by one
block and the cost is a matrix product and a sort. What it is not: the protocol (which rows are queries and which
gallery, `protocol.py`), chance levels (`chance.py`) or intervals (`bootstrap.py`).

Average precision of a query with R relevant items at ranks k_1 < ... < k_R (all of them, no cut-off):
    AP = 1/R sum_j j / k_j;      AP@R = 1/R sum_{j: k_j <= R} j / k_j;      P@R = |{j: k_j <= R}| / R.
Equal scores are ordered by a hash of the gallery id: any order that follows the classes would leak them.
Legend: Q queries, N gallery, C classes, D embedding, B rows of one block.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zscmr_ray.machine import num_cpus
from zscmr_ray.retrieval.ordering import SORT_ELEMENTS, query_blocks, tie_ranks
from zscmr_ray.retrieval.ranks import hit_ranks
from zscmr_ray.retrieval.relevance import Hits, RelevanceRule

RECALL_LEVELS: npt.NDArray[np.float64] = np.linspace(0.0, 1.0, 21)

FloatArray = npt.NDArray[np.float32]
Scores = Callable[[int, int], FloatArray]
"""Scores of the queries [start, stop) with the whole gallery, [stop - start, N]."""


@dataclass(frozen=True, slots=True)
class RankingMetrics:
    """Numbers per query (float64[Q], NaN where a query has no relevant item) and the mean interpolated curve.

    `precision_L` is the mean over queries of the interpolated precision at RECALL_LEVELS.
    """

    average_precision_Q: npt.NDArray[np.float64]
    average_precision_at_r_Q: npt.NDArray[np.float64]
    precision_at_r_Q: npt.NDArray[np.float64]
    num_relevant_Q: npt.NDArray[np.int64]
    precision_L: npt.NDArray[np.float64]

    @property
    def mean_average_precision(self) -> float:
        """Mean of the average precision over the queries that have a relevant item; NaN if none has."""
        return mean_of_defined(self.average_precision_Q)


def ranking_metrics(
    query_QD: FloatArray,
    gallery_ND: FloatArray,
    *,
    relevance: RelevanceRule,
    gallery_ids: Sequence[str],
) -> RankingMetrics:
    """Rank the gallery by inner product for every query and return the metrics over the whole ranking.

    Raises DataError for scores that are not finite. mAP@all, Musgrave et al. 2020 for mAP@R.

    One query, four items with scores .9 .8 .7 .6, the first and the third relevant: AP = (1/1 + 2/3) / 2.

    >>> from zscmr_ray.retrieval.relevance import Relevance
    >>> query = np.ones((1, 1), np.float32)
    >>> gallery = np.array([[0.9], [0.8], [0.7], [0.6]], np.float32)
    >>> right = Relevance(np.array([[True]]), np.array([[True], [False], [True], [False]]))
    >>> found = ranking_metrics(query, gallery, relevance=right, gallery_ids=["a", "b", "c", "d"])
    >>> round(found.mean_average_precision, 4), found.precision_at_r_Q.tolist()
    (0.8333, [0.5])
    """
    return score_metrics(
        inner_products(query_QD, gallery_ND), len(query_QD), relevance=relevance, gallery_ids=gallery_ids
    )


def score_metrics(
    scores: Scores, num_queries: int, *, relevance: RelevanceRule, gallery_ids: Sequence[str]
) -> RankingMetrics:
    """Return what `ranking_metrics` does for scores that need not be inner products of vectors."""
    ties_N = tie_ranks(gallery_ids)
    parts: list[RankingMetrics] = []
    with ThreadPoolExecutor(num_threads()) as pool:
        for start, stop in query_blocks(num_queries, len(gallery_ids)):
            similarity_BN = scores(start, stop)

            def ranked(
                rows: tuple[int, int], start: int = start, similarity_BN: FloatArray = similarity_BN
            ) -> RankingMetrics:
                first, last = rows
                hits = relevance.hits(start + first, start + last)
                return rank_block(similarity_BN[first:last], hits, ties_N=ties_N)

            # What is worked on per hit is several times a cell: a few rows of the block at a time.
            few_rows = query_blocks(stop - start, len(gallery_ids), num_cells=SORT_ELEMENTS)
            parts.extend(pool.map(ranked, few_rows))
    return join_blocks(parts)


def num_threads() -> int:
    """How many threads rank: those that the product has, OMP_NUM_THREADS or the CPUs this process may use (`machine`).

    numpy sorts on one thread, and lets go of Python's lock meanwhile.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(asked) if asked.isdigit() and int(asked) > 0 else max(1, int(num_cpus()))


def inner_products(query_QD: FloatArray, gallery_ND: FloatArray) -> Scores:
    """Return the scores of vectors."""
    return lambda start, stop: query_QD[start:stop] @ gallery_ND.T


def rank_block(similarity_BN: FloatArray, hits: Hits, *, ties_N: npt.NDArray[np.int64]) -> RankingMetrics:
    """Return the metrics of one block of queries from its scores and its hits; `ties_N` from `tie_ranks`."""
    rank_H = hit_ranks(similarity_BN, hits, ties_N=ties_N)
    # Only the hits are worked on from here: their count is what the class sizes make it, not N.
    relevant_B = hits.num_B
    asked = np.flatnonzero(relevant_B)
    first_B = (np.cumsum(relevant_B) - relevant_B)[asked]
    nth_H = np.arange(1, len(rank_H) + 1) - np.repeat(first_B, relevant_B[asked])
    precision_H = nth_H / rank_H
    within_H = rank_H <= np.repeat(relevant_B[asked], relevant_B[asked])

    def per_query(values_H: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        mean_B = np.full(len(relevant_B), np.nan)
        if len(asked):
            mean_B[asked] = np.add.reduceat(values_H, first_B) / relevant_B[asked]
        return mean_B

    return RankingMetrics(
        average_precision_Q=per_query(precision_H),
        average_precision_at_r_Q=per_query(precision_H * within_H),
        precision_at_r_Q=per_query(within_H.astype(np.float64)),
        num_relevant_Q=relevant_B,
        precision_L=_interpolated(precision_H, first_B, relevant_B[asked]),
    )


def join_blocks(parts: Sequence[RankingMetrics]) -> RankingMetrics:
    """Join the metrics of consecutive blocks of queries into one."""
    if not parts:
        empty = np.zeros(0)
        return RankingMetrics(empty, empty, empty, np.zeros(0, np.int64), np.full(len(RECALL_LEVELS), np.nan))
    counts = np.array([(part.num_relevant_Q > 0).sum() for part in parts], np.float64)
    curves = np.stack([part.precision_L for part in parts])
    total = counts.sum()
    curve_L = (
        np.nansum(curves * counts[:, None], axis=0) / total
        if total > 0
        else np.full(len(RECALL_LEVELS), np.nan)
    )
    return RankingMetrics(
        np.concatenate([part.average_precision_Q for part in parts]),
        np.concatenate([part.average_precision_at_r_Q for part in parts]),
        np.concatenate([part.precision_at_r_Q for part in parts]),
        np.concatenate([part.num_relevant_Q for part in parts]),
        curve_L,
    )


def per_class_means(
    values_Q: npt.NDArray[np.float64], query_QC: npt.NDArray[np.bool_], classes: Sequence[str]
) -> dict[str, float]:
    """Return the mean of `values_Q` over each class's queries; a multi-label query counts for each label.

    Classes without a query that has a value are left out. This is also what a paired test permutes by class.
    """
    defined_Q = np.isfinite(values_Q)
    sums_C = (query_QC & defined_Q[:, None]).T.astype(np.float64) @ np.where(defined_Q, values_Q, 0.0)
    counts_C = (query_QC & defined_Q[:, None]).sum(0)
    return {
        name: float(total / count)
        for name, total, count in zip(classes, sums_C, counts_C, strict=True)
        if count
    }


def first_hit_ranks(
    query_QD: FloatArray,
    gallery_ND: FloatArray,
    *,
    relevance: RelevanceRule,
    gallery_ids: Sequence[str],
) -> npt.NDArray[np.int64]:
    """Return for each query the rank (from 1) of the best gallery row of its own item; 0 if it has none there.

    An item with several captions counts as found at the best of them (any-hit).

    >>> query = np.ones((1, 1), np.float32)
    >>> gallery = np.array([[0.1], [0.8], [0.7]], np.float32)
    >>> from zscmr_ray.retrieval.relevance import SameItem
    >>> own = SameItem(np.array([5]), np.array([5, 6, 5]))
    >>> first_hit_ranks(query, gallery, relevance=own, gallery_ids=["a", "b", "c"]).tolist()
    [2]
    """
    return first_hits(
        inner_products(query_QD, gallery_ND), len(query_QD), relevance=relevance, gallery_ids=gallery_ids
    )


def first_hits(
    scores: Scores, num_queries: int, *, relevance: RelevanceRule, gallery_ids: Sequence[str]
) -> npt.NDArray[np.int64]:
    """Return what `first_hit_ranks` does for scores that need not be inner products of vectors."""
    ties_N = tie_ranks(gallery_ids)
    ranks = [np.zeros(0, np.int64)]
    for start, stop in query_blocks(num_queries, len(gallery_ids)):
        similarity_BN = scores(start, stop)
        best = _best_hits(similarity_BN, relevance.hits(start, stop))
        rank_B = np.zeros(stop - start, np.int64)
        # Backwards: where several share the best score, the first of them is written last.
        rank_B[best.row_H[::-1]] = hit_ranks(similarity_BN, best, ties_N=ties_N)[::-1]
        ranks.append(rank_B)
    return np.concatenate(ranks)


def recall_at(ranks_Q: npt.NDArray[np.int64], cutoffs: Sequence[int]) -> dict[int, float]:
    """Return the share of queries whose first hit is within each cut-off; a cut-off above N is no error.

    >>> recall_at(np.array([1, 3, 12]), (1, 5, 10))
    {1: 0.3333333333333333, 5: 0.6666666666666666, 10: 0.6666666666666666}
    """
    found_Q = ranks_Q[ranks_Q > 0]
    return {cutoff: float((found_Q <= cutoff).mean()) if len(found_Q) else float("nan") for cutoff in cutoffs}


def median_rank(ranks_Q: npt.NDArray[np.int64]) -> float:
    """Return the median rank of the first hit over the queries that have one; NaN if none has."""
    found_Q = ranks_Q[ranks_Q > 0]
    return float(np.median(found_Q)) if len(found_Q) else float("nan")


def mean_of_defined(values_Q: npt.NDArray[np.float64]) -> float:
    """Return the mean of the finite values; NaN, without a warning, if there is none."""
    defined_Q = values_Q[np.isfinite(values_Q)]
    return float(defined_Q.mean()) if len(defined_Q) else float("nan")


def _best_hits(similarity_BN: FloatArray, hits: Hits) -> Hits:
    """Those hits of each row that have its highest score."""
    own_H = similarity_BN[hits.row_H, hits.column_H]
    best_B = np.full(len(hits.num_B), -np.inf, np.float32)
    np.maximum.at(best_B, hits.row_H, own_H)
    kept_H = own_H >= best_B[hits.row_H]
    row_H = hits.row_H[kept_H]
    return Hits(row_H, hits.column_H[kept_H], np.bincount(row_H, minlength=len(best_B)))


def _interpolated(
    precision_H: npt.NDArray[np.float64], first_B: npt.NDArray[np.int64], relevant_B: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Mean over queries (each with hits) of the highest precision at or beyond each recall level."""
    if not len(relevant_B):
        return np.full(len(RECALL_LEVELS), np.nan)
    # A running maximum from the right inside each row: an offset per row keeps the rows apart.
    offset_H = np.repeat(2.0 * np.arange(len(relevant_B), 0, -1), relevant_B)
    ceiling_H = np.maximum.accumulate((precision_H + offset_H)[::-1])[::-1]
    # The j-th hit reaches recall j / R: the first j that reaches level r is ceil(r R), and at least 1.
    nth_BL = np.ceil(np.round(RECALL_LEVELS[None, :] * relevant_B[:, None], 9)).astype(np.int64)
    place_BL = first_B[:, None] + np.maximum(nth_BL, 1) - 1
    curve_L: npt.NDArray[np.float64] = (ceiling_H[place_BL] - offset_H[place_BL]).mean(0)
    return curve_L
