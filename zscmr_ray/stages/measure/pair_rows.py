"""Rows of the report for methods whose score exists for pairs (IMFA): exact, and the best by vector re-ranked.

What it is: the pairs that some condition asks for, scored once; both rows read the same matrix. What it is not: the
scoring (`models/cross_scoring.py`) or the ranking (`retrieval/pair_search.py`). The distilled vector is the model's own row.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from zscmr_ray.config import EvaluateSection
from zscmr_ray.models.base import AlignmentModel
from zscmr_ray.models.cross_scoring import FloatArray, cross_scores
from zscmr_ray.progress import Progress
from zscmr_ray.retrieval.pair_search import PairTowers
from zscmr_ray.retrieval.searches import Corpus, Rows, Towers
from zscmr_ray.stages.measure.baselines import Baseline
from zscmr_ray.stages.measure.rows import EncodedRows

EXACT, RERANKED = "fused_exact", "fused_reranked"


def pair_rows(
    model: AlignmentModel,
    rows: EncodedRows,
    ours: Mapping[str, Towers],
    *,
    name: str,
    section: EvaluateSection,
) -> list[Baseline]:
    """Return the exact and the re-ranked row, or why there are too many pairs; nothing for a model that scores by vectors."""
    if rows.pairs is None:
        return []
    names = {EXACT: f"{name}, exact", RERANKED: f"{name}, best {section.rerank_top_k} by vector re-ranked"}
    num_pairs = sum(len(images) * len(texts) for images, texts in asked_blocks(rows.corpus))
    if num_pairs > section.max_exact_pairs:
        reason = f"{num_pairs} pairs to score, more than evaluate.max_exact_pairs={section.max_exact_pairs}"
        return [Baseline(key, title, None, reason) for key, title in names.items()]
    score_NM = _scores(model, rows, num_pairs)
    return [
        Baseline(EXACT, names[EXACT], PairTowers(score_NM)),
        Baseline(RERANKED, names[RERANKED], PairTowers(score_NM, ours["regions"], section.rerank_top_k)),
    ]


def asked_blocks(corpus: Corpus) -> list[tuple[Rows, Rows]]:
    """Return (image rows, text rows) that together hold every pair of which one item is a query: a test row."""
    test_N = corpus.partition_N == "test"
    test_M = test_N[corpus.text_item_M]
    return [
        (np.flatnonzero(test_N), np.arange(len(test_M))),
        (np.flatnonzero(~test_N), np.flatnonzero(test_M)),
    ]


def _scores(model: AlignmentModel, rows: EncodedRows, num_pairs: int) -> FloatArray:
    assert rows.pairs is not None
    image, text = rows.pairs
    # What no condition asks for stays NaN: a ranking of it would stop, not count.
    score_NM = np.full((len(rows.corpus.ids), len(rows.captions)), np.nan, np.float32)
    with Progress("evaluate", total=num_pairs, unit="pairs") as progress:
        for images, texts in asked_blocks(rows.corpus):
            for some in np.array_split(images, max(1, len(images) // 256)):
                score_NM[np.ix_(some, texts)] = cross_scores(
                    model, image, text, image_rows=some, text_rows=texts
                )
                progress.advance(len(some) * len(texts))
    return score_NM
