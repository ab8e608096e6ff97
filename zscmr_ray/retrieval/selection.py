"""The choice of the label weight and temperature (lambda, tau), on held-out data only.

What it is: a grid search over S = (1 - l) cos(region) + l sum_c sqrt(p_q(c) p_g(c)), p = softmax(logits / tau), scored
by the average mAP of both directions. What it is not: allowed to see unseen classes: the rows that count are those of
the pseudo-unseen classes (queries val + test, gallery train; DESIGN 2), or, in a corpus without labels, the val rows
(each item's own captions, each caption's own image). Everything else passed in is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval import chance, metrics
from zscmr_ray.retrieval.ordering import SORT_ELEMENTS, query_blocks, tie_ranks
from zscmr_ray.retrieval.protocol import ClassGroups
from zscmr_ray.retrieval.relevance import Relevance, RelevanceRule, SameItem, membership
from zscmr_ray.retrieval.scoring import label_block
from zscmr_ray.retrieval.searches import DIRECTIONS, Corpus, Search, Towers, make_search

LABEL_WEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
LABEL_TEMPERATURES = (0.25, 0.5, 1.0, 2.0)
MAX_QUERY_ITEMS = 500  # the search is repeated after every epoch: more queries cost more than they tell

FloatArray = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HeadOutputs:
    """What the two heads give: unit regions, image [N, D] and text [M, D], and logits [N, C], [M, C] if any."""

    image_regions_ND: FloatArray
    text_regions_MD: FloatArray
    image_logits_NC: FloatArray | None = None
    text_logits_MC: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class FusionChoice:
    """The chosen weights, their score (average mAP), chance on the same rows, and the table of all candidates."""

    label_weight: float
    label_temperature: float
    score: float
    chance: float
    rows: str
    num_queries: int
    table: tuple[dict[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, the selection record of the checkpoint."""
        return {
            "label_weight": self.label_weight,
            "label_temperature": self.label_temperature,
            "score": self.score,
            "chance": self.chance,
            "rows": self.rows,
            "num_queries": self.num_queries,
            "table": list(self.table),
        }


def select_fusion(
    outputs: HeadOutputs,
    corpus: Corpus,
    *,
    pseudo_unseen: Sequence[str],
    label_weights: Sequence[float] = LABEL_WEIGHTS,
    label_temperatures: Sequence[float] = LABEL_TEMPERATURES,
) -> FusionChoice:
    """Return the best (label_weight, label_temperature) of the grid on the pseudo-unseen classes.

    `corpus` and `outputs` may hold any rows: only items with a pseudo-unseen class count, or, where no item has a
    label, the val partition. Without logits the label weight is 0. Ties go to the smaller weight, then to
    the temperature nearest 1. Raises DataError if no query or no gallery row is left.
    """
    queries, gallery, rows = selection_rows(corpus, pseudo_unseen)
    weights, temperatures = _grid(outputs, label_weights, label_temperatures)
    totals = dict.fromkeys(_candidates(weights, temperatures), 0.0)
    chances, num_queries = [], 0
    for direction in DIRECTIONS:
        found, chance_level, asked = _score_direction(
            outputs,
            corpus,
            items=(queries, gallery),
            classes=tuple(pseudo_unseen),
            direction=direction,
            candidates=tuple(totals),
        )
        chances.append(chance_level)
        num_queries += asked
        for candidate, score in found.items():
            totals[candidate] += score / len(DIRECTIONS)
    best = min(totals, key=lambda pair: (-round(totals[pair], 9), pair[0], abs(np.log(pair[1]))))
    return FusionChoice(
        label_weight=best[0],
        label_temperature=best[1],
        score=totals[best],
        chance=float(np.mean(chances)),
        rows=rows,
        num_queries=num_queries,
        table=tuple(
            {"label_weight": weight, "label_temperature": temperature, "map": score}
            for (weight, temperature), score in totals.items()
        ),
    )


def selection_rows(corpus: Corpus, pseudo_unseen: Sequence[str]) -> tuple[Rows, Rows, str]:
    """Return (query items, gallery items, name) of validation: see the module's first paragraph.

    Of more than MAX_QUERY_ITEMS query items, those first by the id's hash ask. Raises DataError if either is empty.
    """
    if pseudo_unseen:
        held_N = ClassGroups((), (), tuple(pseudo_unseen)).of_items(corpus.labels) == "held"
        queries = np.flatnonzero(held_N & np.isin(corpus.partition_N, ("val", "test")))
        gallery = np.flatnonzero(held_N & (corpus.partition_N == "train"))
        name = "pseudo-unseen"
    else:
        queries = gallery = np.flatnonzero(corpus.partition_N == "val")
        name = "val"
    if not len(queries) or not len(gallery):
        counts = dict(zip(*np.unique(corpus.partition_N, return_counts=True), strict=True))
        raise DataError(
            "no rows to validate on",
            got=f"{len(queries)} queries and {len(gallery)} gallery items; partitions {counts}",
            expected=f"items of the {len(pseudo_unseen)} pseudo-unseen classes in train and in val or test"
            if pseudo_unseen
            else "items in the val partition",
            remedy="use another split seed, a larger corpus, or check the partition column",
        )
    by_hash = queries[np.argsort(tie_ranks([corpus.ids[item] for item in queries.tolist()]))]
    return np.sort(by_hash[:MAX_QUERY_ITEMS]), gallery, name


def _grid(
    outputs: HeadOutputs, label_weights: Sequence[float], label_temperatures: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    if outputs.image_logits_NC is None or outputs.text_logits_MC is None:
        return (0.0,), (1.0,)
    return label_weights, label_temperatures


def _candidates(weights: Sequence[float], temperatures: Sequence[float]) -> list[tuple[float, float]]:
    """All pairs, but weight 0 only once: without labels the temperature does not matter."""
    pairs = [(weight, temperature) for weight in weights if weight > 0 for temperature in temperatures]
    return [(0.0, 1.0), *pairs] if 0.0 in weights else pairs


def _score_direction(
    outputs: HeadOutputs,
    corpus: Corpus,
    *,
    items: tuple[Rows, Rows],
    classes: tuple[str, ...],
    direction: str,
    candidates: Sequence[tuple[float, float]],
) -> tuple[dict[tuple[float, float], float], float, int]:
    """The mAP of every candidate in one direction, its chance level and number of queries."""

    def search(image_ND: FloatArray, text_MD: FloatArray) -> Search:
        towers = Towers.symmetric(image_ND, text_MD)
        return make_search(towers, corpus, query_items=items[0], gallery_items=items[1], direction=direction)

    regions = search(outputs.image_regions_ND, outputs.text_regions_MD)
    labels = {}
    for temperature in sorted({temperature for weight, temperature in candidates if weight > 0}):
        assert outputs.image_logits_NC is not None and outputs.text_logits_MC is not None
        labels[temperature] = search(
            label_block(outputs.image_logits_NC, label_temperature=temperature),
            label_block(outputs.text_logits_MC, label_temperature=temperature),
        )
    relevance = _relevance(corpus, classes, regions)
    ties_N = tie_ranks(regions.gallery_ids)
    sums = dict.fromkeys(candidates, 0.0)
    relevant = []
    num_queries, num_gallery = len(regions.query_QD), len(regions.gallery_ND)
    for start, stop in query_blocks(num_queries, num_gallery, num_cells=SORT_ELEMENTS):
        hits = relevance.hits(start, stop)
        relevant.append(hits.num_B)
        region_BN = regions.query_QD[start:stop] @ regions.gallery_ND.T
        label_BN = {
            temperature: found.query_QD[start:stop] @ found.gallery_ND.T
            for temperature, found in labels.items()
        }
        for weight, temperature in candidates:
            score_BN = np.float32(1.0 - weight) * region_BN
            if weight > 0:
                score_BN += np.float32(weight) * label_BN[temperature]
            ranked = metrics.rank_block(score_BN, hits, ties_N=ties_N)
            sums[weight, temperature] += float(np.nansum(ranked.average_precision_Q))
    relevant_Q = np.concatenate(relevant)
    asked = int((relevant_Q > 0).sum())
    chance_level = metrics.mean_of_defined(
        chance.expected_average_precision(relevant_Q, len(regions.gallery_ids))
    )
    return {pair: total / max(1, asked) for pair, total in sums.items()}, chance_level, asked


def _relevance(corpus: Corpus, classes: tuple[str, ...], search: Search) -> RelevanceRule:
    if not classes:
        return SameItem(search.query_items_Q, search.gallery_items_N)
    member_NC = membership(corpus.labels, classes)
    return Relevance(member_NC[search.query_items_Q], member_NC[search.gallery_items_N])
