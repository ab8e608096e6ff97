"""The zero-shot retrieval protocol: which rows ask, which are searched, and the numbers of one method (SCIENCE 4).

What it is: a pure function from the vectors of both sides, labels, partitions, class groups and ids to the numbers of
the report. What it is not: the stage that loads a checkpoint, or the choice of any setting (`selection.py`).

Queries are test rows, galleries are train rows; one text row per caption, relevant by the classes of its item.
    U|U, S|S     queries and gallery of unseen (seen) classes only
    U|all, S|all gallery of every class: seen, unseen and held-out (pseudo-unseen) ones
    H            harmonic mean of S|all and U|all
The seen galleries hold items that were trained on. Instance retrieval (an image's own captions, a caption's own
image) searches the test rows, whose own partner is among them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zscmr_ray.data.splits import rows_of
from zscmr_ray.retrieval import chance, metrics
from zscmr_ray.retrieval.bootstrap import harmonic_mean, interval, resample_means
from zscmr_ray.retrieval.relevance import Relevance, SameItem, membership
from zscmr_ray.retrieval.searches import DIRECTIONS, Corpus, Ranking, Rows, Searchable

Values = npt.NDArray[np.float64]

CONDITIONS = (("U|U", "U", "U"), ("S|S", "S", "S"), ("U|all", "U", "all"), ("S|all", "S", "all"))
CUTOFFS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class ClassGroups:
    """The classes trained on (seen), those never shown (unseen), and those kept for validation (held out)."""

    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    held_out: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class, in the order seen, held out, unseen."""
        return (*self.seen, *self.held_out, *self.unseen)

    def of_items(self, labels: Sequence[tuple[str, ...]]) -> npt.NDArray[np.str_]:
        """Return each item's group: U, held or S, or an empty string where its labels are not all of one group.

        The rule of `data.splits.rows_of`, the one training goes by: a mixed item takes part in nothing.
        """
        group_N = np.full(len(labels), "", dtype="U4")
        for name, classes in (("S", self.seen), ("held", self.held_out), ("U", self.unseen)):
            group_N[rows_of(labels, classes)] = name
        return group_N


def condition_items(corpus: Corpus, groups: ClassGroups) -> dict[str, tuple[Rows, Rows]]:
    """Return (query items, gallery items) of each condition that has both."""
    group_N = groups.of_items(corpus.labels)
    found = {}
    for condition, asked, searched in CONDITIONS:
        in_gallery = group_N != "" if searched == "all" else group_N == searched
        queries = np.flatnonzero((corpus.partition_N == "test") & (group_N == asked))
        gallery = np.flatnonzero((corpus.partition_N == "train") & in_gallery)
        if len(queries) and len(gallery):
            found[condition] = (queries, gallery)
    return found


def evaluate_method(
    towers: Searchable,
    corpus: Corpus,
    groups: ClassGroups,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    keep_queries: Collection[str] = (),
) -> dict[str, Any]:
    """Return the numbers of one method as plain values: {"classes": {condition: ...}, "instance": {rows: ...}}.

    Each condition has image_to_text, text_to_image and average; every mAP comes with `interval` (95%, classes
    then queries resampled) and `chance` (exact). Conditions without queries or gallery are left out; without labels
    `classes` is empty. A query none of whose classes is in the gallery has no AP and is counted apart. Conditions in
    `keep_queries` also hold each query's AP and class (`queries`), for intervals over several evaluations.
    """
    by_class: dict[str, Any] = {}
    resampled: dict[str, dict[str, Values]] = {}
    for number, (condition, (queries, gallery)) in enumerate(condition_items(corpus, groups).items()):
        by_class[condition], resampled[condition] = condition_numbers(
            towers,
            corpus,
            groups,
            query_items=queries,
            gallery_items=gallery,
            num_resamples=num_resamples,
            seed=seed + number,
            keep_queries=condition in keep_queries,
        )
    if "S|all" in by_class and "U|all" in by_class:
        by_class["H"] = _harmonic(by_class, resampled)
    instance = {}
    group_N = groups.of_items(corpus.labels)
    for name, chosen_N in (("test", np.full(len(group_N), True)), ("test U", group_N == "U")):
        items = np.flatnonzero((corpus.partition_N == "test") & chosen_N)
        if len(items):
            instance[name] = {
                direction: instance_numbers(
                    towers.search(corpus, query_items=items, gallery_items=items, direction=direction),
                    num_resamples=num_resamples,
                    seed=seed,
                )
                for direction in DIRECTIONS
            }
    return {"classes": by_class, "instance": instance}


def instance_numbers(search: Ranking, *, num_resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Return recall@1/5/10 and the median rank of one direction, with intervals (by item) and chance."""
    own = SameItem(search.query_items_Q, search.gallery_items_N)
    ranks_Q = metrics.first_hits(
        search.scores, len(search.query_items_Q), relevance=own, gallery_ids=search.gallery_ids
    )
    num_own_Q, num_gallery = own.num_relevant(), len(search.gallery_ids)
    found_Q = np.where(ranks_Q > 0, 1.0, np.nan)
    samples = [(found_Q * (ranks_Q <= cutoff), search.query_items_Q) for cutoff in CUTOFFS]
    means = resample_means(samples, num_resamples=num_resamples, seed=seed)
    recalls = metrics.recall_at(ranks_Q, CUTOFFS)
    chances = chance.expected_recall_at(num_own_Q, num_gallery, cutoffs=CUTOFFS)
    return {
        "num_queries": int((ranks_Q > 0).sum()),
        "num_gallery": num_gallery,
        "recall": {
            str(cutoff): {
                "value": recalls[cutoff],
                "interval": list(interval(mean_S)),
                "chance": chances[cutoff],
            }
            for cutoff, mean_S in zip(CUTOFFS, means, strict=True)
        },
        "median_rank": metrics.median_rank(ranks_Q),
        "chance_median_rank": chance.expected_median_rank(num_own_Q, num_gallery),
    }


def condition_numbers(
    towers: Searchable,
    corpus: Corpus,
    groups: ClassGroups,
    *,
    query_items: Rows,
    gallery_items: Rows,
    num_resamples: int = 1000,
    seed: int = 0,
    keep_queries: bool = False,
) -> tuple[dict[str, Any], dict[str, Values]]:
    """Return the numbers of one condition and its resampled means, by direction and on average.

    Both directions share the class draws. One direction is laid out at a time: its rows are copies. `keep_queries` as
    in `evaluate_method`.
    """
    member_NC = membership(corpus.labels, groups.classes)
    numbers: dict[str, Any] = {}
    samples = []
    for name in DIRECTIONS:
        search = towers.search(corpus, query_items=query_items, gallery_items=gallery_items, direction=name)
        query_QC = member_NC[search.query_items_Q]
        relevance = Relevance(query_QC, member_NC[search.gallery_items_N])
        found = metrics.score_metrics(
            search.scores, len(query_QC), relevance=relevance, gallery_ids=search.gallery_ids
        )
        numbers[name] = _direction_numbers(found, query_QC, groups.classes, len(search.gallery_ids))
        # A multi-label query is resampled with the first of its classes.
        samples.append((found.average_precision_Q, query_QC.argmax(1)))
        if keep_queries:
            numbers[name]["queries"] = _queries(*samples[-1], groups.classes)
        del search
    means = dict(
        zip(DIRECTIONS, resample_means(samples, num_resamples=num_resamples, seed=seed), strict=True)
    )
    means["average"] = np.mean([means[name] for name in DIRECTIONS], axis=0)
    numbers["average"] = {
        key: float(np.mean([numbers[name][key] for name in DIRECTIONS])) for key in ("map", "chance")
    }
    for name, mean_S in means.items():
        numbers[name]["interval"] = list(interval(mean_S))
    return numbers, means


def _direction_numbers(
    found: metrics.RankingMetrics, query_QC: npt.NDArray[np.bool_], classes: tuple[str, ...], num_gallery: int
) -> dict[str, Any]:
    relevant_Q = found.num_relevant_Q
    mean = metrics.mean_of_defined
    return {
        "map": found.mean_average_precision,
        "chance": mean(chance.expected_average_precision(relevant_Q, num_gallery)),
        "map_at_r": mean(found.average_precision_at_r_Q),
        "chance_map_at_r": mean(chance.expected_average_precision_at_r(relevant_Q, num_gallery)),
        "precision_at_r": mean(found.precision_at_r_Q),
        "chance_precision_at_r": mean(chance.expected_precision_at_r(relevant_Q, num_gallery)),
        "num_queries": int((relevant_Q > 0).sum()),
        "num_queries_without_relevant": int((relevant_Q == 0).sum()),
        "num_gallery": num_gallery,
        "num_classes": int(query_QC.any(0).sum()),
        "precision_at_recall": found.precision_L.tolist(),
        "per_class": metrics.per_class_means(found.average_precision_Q, query_QC, classes),
    }


def _queries(
    values_Q: Values, class_Q: npt.NDArray[np.int64], classes: tuple[str, ...]
) -> dict[str, list[float]]:
    """Each query's AP by class, in the order asked, to four digits; queries without one are left out."""
    found: dict[str, list[float]] = {}
    for row in np.flatnonzero(np.isfinite(values_Q)):
        found.setdefault(classes[class_Q[row]], []).append(round(float(values_Q[row]), 4))
    return found


def _harmonic(by_class: dict[str, Any], resampled: dict[str, dict[str, Values]]) -> dict[str, Any]:
    """H of S|all and U|all, each direction and of the averages; its interval pairs their resamples."""
    numbers = {}
    for name in (*DIRECTIONS, "average"):
        seen, unseen = by_class["S|all"][name], by_class["U|all"][name]
        pairs = zip(resampled["S|all"][name], resampled["U|all"][name], strict=True)
        numbers[name] = {
            "map": harmonic_mean(seen["map"], unseen["map"]),
            "chance": harmonic_mean(seen["chance"], unseen["chance"]),
            "interval": list(interval(np.array([harmonic_mean(one, other) for one, other in pairs]))),
        }
    return numbers
