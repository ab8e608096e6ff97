"""Searches by a score that exists for pairs only (models/imfa.py), exact or for the K best by vector.

    exact       the pair score of every query with every gallery row
    re-ranked   the K best by vector first, in the order of their pair score; then the rest, in the order of their vectors

What it is: a matrix of pair scores made before (image rows, text columns; models/cross_scoring.py). What it is not:
the model that scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from zscmr_ray.retrieval.ordering import sort_keys, tie_ranks
from zscmr_ray.retrieval.searches import Corpus, FloatArray, Rows, Towers

# Both scores are cosines: the shortlist's are lifted over all others.
_LIFT = np.float32(3.0)


@dataclass(frozen=True, slots=True)
class PairTowers:
    """Pair scores [N, M] of images with texts, NaN where no condition asks; with `top_k`, of the K best by `vectors`."""

    score_NM: FloatArray
    vectors: Towers | None = None
    top_k: int | None = None

    def search(
        self, corpus: Corpus, *, query_items: Rows, gallery_items: Rows, direction: str
    ) -> PairRanking:
        """Lay out one direction: images ask for the gallery items' captions, or captions for the gallery's images."""
        by_image = direction == "image_to_text"
        owners = gallery_items if by_image else query_items
        texts = np.flatnonzero(np.isin(corpus.text_item_M, owners))
        ids = corpus.text_ids() if by_image else corpus.ids
        rows = texts if by_image else gallery_items
        pair_QN = self.score_NM[np.ix_(query_items if by_image else gallery_items, texts)]
        vector_QN = None
        if self.top_k is not None:
            assert self.vectors is not None, "a shortlist needs vectors"
            found = self.vectors.search(
                corpus, query_items=query_items, gallery_items=gallery_items, direction=direction
            )
            vector_QN = found.query_QD @ found.gallery_ND.T
        return PairRanking(
            query_items_Q=query_items if by_image else corpus.text_item_M[texts],
            gallery_items_N=corpus.text_item_M[texts] if by_image else gallery_items,
            gallery_ids=[ids[row] for row in rows],
            pair_QN=pair_QN if by_image else pair_QN.T,
            vector_QN=vector_QN,
            top_k=self.top_k,
        )


@dataclass(frozen=True, slots=True)
class PairRanking:
    """One direction: pair scores [Q, N], and where only a shortlist is re-ranked the scores of the vectors."""

    query_items_Q: Rows
    gallery_items_N: Rows
    gallery_ids: list[str]
    pair_QN: FloatArray
    vector_QN: FloatArray | None = None
    top_k: int | None = None
    _ties_N: Rows = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ties_N", tie_ranks(self.gallery_ids))

    def scores(self, start: int, stop: int) -> FloatArray:
        """Scores of the query rows [start, stop) with every gallery row."""
        pair_BN = np.ascontiguousarray(self.pair_QN[start:stop])
        if self.vector_QN is None or self.top_k is None:
            return pair_BN
        return reranked(self.vector_QN[start:stop], pair_BN, top_k=self.top_k, ties_N=self._ties_N)


def reranked(
    vector_BN: FloatArray, pair_BN: FloatArray, *, top_k: int, ties_N: npt.NDArray[np.int64]
) -> FloatArray:
    """Return scores whose order is: the `top_k` best of each row by vector, by pair score; then the others by vector.

    Both are cosines, in [-1, 1]. Ties for the last place of the shortlist are settled by `ties_N` (`tie_ranks`).

    >>> vector, pair = np.array([[0.9, 0.8, 0.1]], np.float32), np.array([[0.0, 0.5, 1.0]], np.float32)
    >>> np.argsort(-reranked(vector, pair, top_k=2, ties_N=np.arange(3))).tolist()
    [[1, 0, 2]]
    """
    kept = min(top_k, vector_BN.shape[1])
    if kept == 0:
        return vector_BN
    keys_BN = sort_keys(vector_BN, ties_N[None, :])
    last_B1 = np.partition(keys_BN, kept - 1, axis=1)[:, kept - 1, None]
    return np.where(keys_BN <= last_B1, pair_BN + _LIFT, vector_BN)
