"""How many lists a search reads, tuned on held-out queries of each direction and weight, and the recall that gives.

Texts asking for images are no sample of the images: lists tuned on the gallery's own rows miss their neighbours, so each
asking side has its own numbers. The label weight (lambda) comes with the query, so each is tuned at 0, 0.5 and 1, and a
weight in between reads as many lists as the larger of its neighbours. Half of the queries tune, the other half measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zscmr_ray.retrieval.exact import FloatArray, Hits, RowArray
from zscmr_ray.retrieval.ivf import IvfIndex
from zscmr_ray.retrieval.scoring import LABEL, Block, has_block, weigh_query

K = 10
WEIGHTS = (0.0, 0.5, 1.0)
# Lists that are read are raised by this factor while the tuning queries miss the target.
_GROWTH = 1.25
_TIE = 1e-12
# float16 rows are converted once for so many queries.
_QUERIES_AT_ONCE = 400


@dataclass(frozen=True, slots=True)
class AskingRows:
    """Held-out queries of one side: unweighted vectors [Q, D], and each one's own row in the gallery (-1 = none)."""

    vectors_QD: FloatArray
    own_rows_Q: RowArray


@dataclass(frozen=True)
class Probes:
    """Lists to read by asking side and label weight: `{"text": {0.0: 24, 0.5: 30, 1.0: 61}, ...}`."""

    table: Mapping[str, Mapping[float, int]]

    def number(self, asked: str | None, label_weight: float | None) -> int:
        """Return the lists that a query of this side and weight reads; the most of any where one is not known.

        >>> probes = Probes({"text": {0.0: 4, 0.5: 8, 1.0: 2}, "image": {0.0: 3, 0.5: 3, 1.0: 3}})
        >>> probes.number("text", 0.0), probes.number("text", 0.75), probes.number(None, 1.0)
        (4, 8, 3)
        """
        row = None if asked is None else self.table.get(asked)
        rows = list(self.table.values()) if row is None else [row]
        return max(self._of(row, label_weight) for row in rows)

    @staticmethod
    def _of(row: Mapping[float, int], label_weight: float | None) -> int:
        if label_weight is None:
            return max(row.values())
        below = max((weight for weight in row if weight <= label_weight), default=min(row))
        above = min((weight for weight in row if weight >= label_weight), default=max(row))
        return max(row[below], row[above])


@dataclass(frozen=True)
class Tuning:
    """The lists to read, and the recall@10 on the measuring queries: asking side -> weight -> recall."""

    probes: Probes
    recall: Mapping[str, Mapping[float, float]]


def tune(
    index: IvfIndex, asking: Mapping[str, AskingRows], blocks: Sequence[Block], *, target: float
) -> Tuning:
    """Find for every side and weight the fewest lists that reach the target recall, and measure it.

    Where no number of lists reaches it (rounding of the vectors), all of them are read and the recall says so.
    """
    weights = WEIGHTS if has_block(blocks, LABEL) else WEIGHTS[:1]
    probes: dict[str, dict[float, int]] = {}
    recall: dict[str, dict[float, float]] = {}
    for side, rows in asking.items():
        for weight in weights:
            queries_QD = weigh_query(rows.vectors_QD, blocks, label_weight=weight)
            truth = _truth(index, queries_QD, rows.own_rows_Q)
            tuning, measuring = slice(0, None, 2), slice(1, None, 2)
            number = _fewest(index, queries_QD[tuning], _part(truth, tuning), rows.own_rows_Q[tuning], target)
            probes.setdefault(side, {})[weight] = number
            measured = measuring if len(queries_QD) > 1 else tuning
            recall.setdefault(side, {})[weight] = round(
                _recall(
                    index, queries_QD[measured], _part(truth, measured), rows.own_rows_Q[measured], number
                ),
                4,
            )
    return Tuning(Probes(probes), recall)


def label_weights(queries_QD: FloatArray, blocks: Sequence[Block]) -> npt.NDArray[np.float64]:
    """Return the label weight of weighted queries [Q], from the lengths of their blocks (weights are 1 - l and l)."""
    labels = [block for block in blocks if block.name == LABEL]
    if not labels:
        return np.zeros(len(queries_QD))
    lengths = {
        block.name: np.linalg.norm(queries_QD[:, block.start : block.stop].astype(np.float64), axis=1)
        for block in blocks
    }
    label_Q = lengths.pop(LABEL)
    other_Q = np.max(np.stack(list(lengths.values())), axis=0) if lengths else np.zeros_like(label_Q)
    total_Q = label_Q + other_Q
    weights_Q = np.divide(label_Q, total_Q, out=np.zeros_like(label_Q), where=total_Q > 0)
    # Vectors are rounded to f16: 0.5 comes back as 0.4998.
    return np.asarray(np.round(weights_Q, 2))


def _truth(index: IvfIndex, queries_QD: FloatArray, own_rows_Q: RowArray) -> Hits:
    """The exact K best of each query without its own row."""
    k = min(K + 1, index.num_rows)
    parts = [
        index.exact.search(queries_QD[start : start + _QUERIES_AT_ONCE], k=k)
        for start in range(0, len(queries_QD), _QUERIES_AT_ONCE)
    ]
    joined = Hits(
        np.concatenate([part.scores_QK for part in parts]), np.concatenate([part.rows_QK for part in parts])
    )
    return _without(joined, own_rows_Q)


def _without(hits: Hits, own_rows_Q: RowArray) -> Hits:
    """Drop each query's own row, or the last one where it is not among the hits."""
    is_own_QK = hits.rows_QK == own_rows_Q[:, None]
    is_own_QK[~is_own_QK.any(axis=1), -1] = True
    shape = (len(hits.rows_QK), hits.rows_QK.shape[1] - 1)
    return Hits(hits.scores_QK[~is_own_QK].reshape(shape), hits.rows_QK[~is_own_QK].reshape(shape))


def _part(hits: Hits, chosen: slice) -> Hits:
    return Hits(hits.scores_QK[chosen], hits.rows_QK[chosen])


def _fewest(index: IvfIndex, queries_QD: FloatArray, truth: Hits, own_rows_Q: RowArray, target: float) -> int:
    """The fewest lists: first where the true neighbours lie, then, as long as rounding costs too much, more."""
    ranks = []
    for query_D, rows_K in zip(queries_QD, truth.rows_QK, strict=True):
        order_L, _ = index.rank_lists(query_D)
        rank_L = np.empty(index.num_lists, np.int64)
        rank_L[order_L] = np.arange(index.num_lists)
        ranks.append(rank_L[index.list_of_N[rows_K]])
    ordered = np.sort(np.concatenate(ranks))
    number = int(ordered[min(len(ordered) - 1, int(np.ceil(target * len(ordered))) - 1)]) + 1
    while number < index.num_lists and _recall(index, queries_QD, truth, own_rows_Q, number) < target:
        number = min(index.num_lists, int(np.ceil(number * _GROWTH)))
    return number


def _recall(index: IvfIndex, queries_QD: FloatArray, truth: Hits, own_rows_Q: RowArray, number: int) -> float:
    """Share of the exact scores that the search reaches: equal scores are no misses."""
    k = truth.scores_QK.shape[1] + 1
    found = _without(index.search(queries_QD, k=k, num_probed_Q=number), own_rows_Q)
    return float((found.scores_QK >= truth.scores_QK[:, -1:] - _TIE).mean())
