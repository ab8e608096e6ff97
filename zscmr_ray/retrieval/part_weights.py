"""The weights of a vector's parts, chosen on held-out classes: the average mAP of a weighted sum of cosines.

What it is: coordinate ascent over the weights of unit parts whose cosines are summed, over several folds, each with classes
that the parts were not fitted on. What it is not: allowed to see unseen classes: it reads only the folds it is given
(engine/fitted.py cuts them from the trained classes), and it knows nothing of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zscmr_ray.retrieval import metrics
from zscmr_ray.retrieval.relevance import Relevance, membership
from zscmr_ray.retrieval.searches import DIRECTIONS, Corpus, Rows, Towers, make_search

FloatArray = npt.NDArray[np.float32]
# Half a unit of the largest weight, then a quarter: finer steps are below the noise between folds.
STEPS = (0.5, 0.25)
# A change must gain this much mAP: less is noise, and would only move the weights away from where they began.
MIN_GAIN = 0.0005


@dataclass(frozen=True, slots=True)
class PartFold:
    """One held-out set of classes: unit parts of its rows by name, image [N, D] and text [M, D], and who asks whom."""

    image: Mapping[str, FloatArray]
    text: Mapping[str, FloatArray]
    corpus: Corpus
    classes: tuple[str, ...]
    query_items: Rows
    gallery_items: Rows


def choose_part_weights(
    folds: Sequence[PartFold], *, start: Mapping[str, float]
) -> tuple[dict[str, float], float]:
    """Return the weights (largest 1) that give the best mAP, averaged over folds and directions, and that mAP.

    The ascent begins at `start` and is deterministic; a part's weight may become 0 only where that gains.
    """
    scored = [_FoldScores(fold) for fold in folds]
    weights = dict(start)
    best = _mean_score(scored, weights)
    for step in STEPS:
        moved = True
        while moved:
            moved = False
            for name in start:
                for change in (step, -step):
                    tried = _changed(weights, name, change)
                    score = _mean_score(scored, tried) if tried else 0.0
                    if score > best + MIN_GAIN:
                        weights, best, moved = tried, score, True
    return weights, best


def mean_map(folds: Sequence[PartFold], weights: Mapping[str, float]) -> float:
    """Return the mAP at some weights, averaged over folds and directions."""
    return _mean_score([_FoldScores(fold) for fold in folds], weights)


def shrunk(weights: Mapping[str, float], start: Mapping[str, float], *, share: float) -> dict[str, float]:
    """Return weights (largest 1) that lie between the start (share 0) and the chosen ones (share 1), sums made equal.

    Folds hold a third of the classes and are a noisy guide; the start was chosen on many more.

    >>> shrunk({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 1.0}, share=0.5)
    {'a': 1.0, 'b': 0.3333333333333333}
    """
    chosen_sum, start_sum = sum(weights.values()), sum(start.values())
    mixed = {
        name: share * weights[name] / chosen_sum + (1 - share) * start[name] / start_sum for name in start
    }
    largest = max(mixed.values())
    return {name: value / largest for name, value in mixed.items()}


def _changed(weights: Mapping[str, float], name: str, change: float) -> dict[str, float]:
    """The weights with one moved by a share of the largest; empty where that changes nothing or leaves none."""
    largest = max(weights.values())
    moved = {**weights, name: max(0.0, weights[name] + change * largest)}
    top = max(moved.values())
    if moved[name] == weights[name] or top == 0:
        return {}
    return {key: value / top for key, value in moved.items()}


def _mean_score(folds: Sequence[_FoldScores], weights: Mapping[str, float]) -> float:
    return float(np.mean([fold.average_map(weights) for fold in folds]))


class _FoldScores:
    """The cosines of every part in both directions, kept so that each try is a sum and a ranking."""

    def __init__(self, fold: PartFold) -> None:
        member_NC = membership(fold.corpus.labels, fold.classes)
        self.directions = []
        for direction in DIRECTIONS:
            cosines: dict[str, FloatArray] = {}
            for name, image_ND in fold.image.items():
                search = make_search(
                    Towers.symmetric(image_ND, fold.text[name]),
                    fold.corpus,
                    query_items=fold.query_items,
                    gallery_items=fold.gallery_items,
                    direction=direction,
                )
                cosines[name] = search.scores(0, len(search.query_items_Q))
            relevance = Relevance(member_NC[search.query_items_Q], member_NC[search.gallery_items_N])
            self.directions.append((cosines, relevance, search.gallery_ids))

    def average_map(self, weights: Mapping[str, float]) -> float:
        """The mean over both directions of the mAP of the weighted sum."""
        found = []
        for cosines, relevance, gallery_ids in self.directions:
            score_QN = sum(
                (np.float32(weights[name]) * value for name, value in cosines.items()),
                start=np.float32(0.0) * next(iter(cosines.values())),
            )
            ranked = metrics.score_metrics(
                lambda first, last, score_QN=score_QN: score_QN[first:last],  # type: ignore[misc]
                len(score_QN),
                relevance=relevance,
                gallery_ids=gallery_ids,
            )
            found.append(metrics.mean_of_defined(ranked.average_precision_Q))
        return float(np.mean(found))
