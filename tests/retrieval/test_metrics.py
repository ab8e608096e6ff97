"""Ranking metrics against nested loops, scikit-learn, and a scorer that knows nothing."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import average_precision_score

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval import chance, metrics, ordering, ranks
from zscmr_ray.retrieval.relevance import Relevance, SameItem, membership


def naive_order(scores: list[float], ids: list[str]) -> list[int]:
    """Best first; ties by the hash of the id."""
    return sorted(
        range(len(ids)),
        key=lambda row: (-scores[row], hashlib.blake2b(ids[row].encode(), digest_size=8).digest()),
    )


def naive_query(scores: list[float], relevant: list[bool], ids: list[str]) -> tuple[float, float, float]:
    """AP, AP@R and P@R of one query, straight from the definitions."""
    total = sum(relevant)
    hits, precision_sum, early_sum, early_hits = 0, 0.0, 0.0, 0
    for rank, row in enumerate(naive_order(scores, ids), start=1):
        if relevant[row]:
            hits += 1
            precision_sum += hits / rank
            if rank <= total:
                early_sum += hits / rank
                early_hits += 1
    return precision_sum / total, early_sum / total, early_hits / total


def naive_curve(scores: list[float], relevant: list[bool], ids: list[str]) -> list[float]:
    """Interpolated precision: at each level, the highest precision among the points of at least that recall."""
    points, hits = [], 0
    for rank, row in enumerate(naive_order(scores, ids), start=1):
        if relevant[row]:
            hits += 1
            points.append((hits / sum(relevant), hits / rank))
    return [max(p for r, p in points if r >= level - 1e-9) for level in metrics.RECALL_LEVELS]


def make_case(
    seed: int, *, num_queries: int, num_gallery: int, num_classes: int, multi: bool, coarse: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], Relevance, list[str]]:
    """Random vectors; coarse ones give many equal scores, negative ones included."""
    rng = np.random.default_rng(seed)

    def vectors(rows: int) -> npt.NDArray[np.float32]:
        drawn = rng.integers(-1, 2, (rows, 3)) if coarse else rng.standard_normal((rows, 8))
        return drawn.astype(np.float32)

    def labels(rows: int) -> npt.NDArray[np.bool_]:
        if multi:
            return rng.random((rows, num_classes)) < 0.3
        return np.eye(num_classes, dtype=bool)[rng.integers(0, num_classes, rows)]

    query_QD, gallery_ND = vectors(num_queries), vectors(num_gallery)
    relevance = Relevance(labels(num_queries), labels(num_gallery))
    return query_QD, gallery_ND, relevance, [f"item-{row}" for row in range(num_gallery)]


@pytest.mark.parametrize("few", [0, 99])
@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("coarse", [False, True])
def test_ranking_matches_the_loops(
    multi: bool, coarse: bool, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordering, "BLOCK_ELEMENTS", 150)  # several blocks, the last one short
    monkeypatch.setattr(metrics, "SORT_ELEMENTS", 70)
    monkeypatch.setattr(ranks, "FEW_HITS", few)  # by sorting, by counting
    query, gallery, relevance, ids = make_case(
        3, num_queries=17, num_gallery=40, num_classes=4, multi=multi, coarse=coarse
    )
    found = metrics.ranking_metrics(query, gallery, relevance=relevance, gallery_ids=ids)
    right = (relevance.query_QC.astype(int) @ relevance.gallery_NC.T.astype(int)) > 0
    curves = []
    for row in range(17):
        scores, relevant = (query[row] @ gallery.T).tolist(), right[row].tolist()
        assert found.num_relevant_Q[row] == sum(relevant)
        if not any(relevant):
            assert np.isnan(found.average_precision_Q[row])
            continue
        expected = naive_query(scores, relevant, ids)
        got = (
            found.average_precision_Q[row],
            found.average_precision_at_r_Q[row],
            found.precision_at_r_Q[row],
        )
        assert got == pytest.approx(expected)
        curves.append(naive_curve(scores, relevant, ids))
    assert found.precision_L == pytest.approx(np.mean(curves, axis=0))


def test_average_precision_agrees_with_scikit_learn() -> None:
    query, gallery, relevance, ids = make_case(
        5, num_queries=20, num_gallery=60, num_classes=5, multi=False, coarse=False
    )
    found = metrics.ranking_metrics(query, gallery, relevance=relevance, gallery_ids=ids)
    for row in range(20):
        right = np.zeros(60, bool)
        right[relevance.hits(row, row + 1).column_H] = True
        expected = average_precision_score(right, query[row] @ gallery.T)
        assert found.average_precision_Q[row] == pytest.approx(expected, abs=1e-6, rel=0)


def test_a_constant_scorer_scores_chance_whatever_the_row_order() -> None:
    num_classes, per_class = 30, 20
    labels = np.repeat(np.eye(num_classes, dtype=bool), per_class, axis=0)
    ids = [f"{row // per_class:02d}/{row:04d}" for row in range(len(labels))]  # ids follow the classes
    ones = np.ones((len(labels), 4), np.float32)
    relevance = Relevance(labels, labels)
    found = metrics.ranking_metrics(ones, ones, relevance=relevance, gallery_ids=ids)
    expected = chance.expected_average_precision(np.array([per_class]), len(ids))[0]
    assert found.mean_average_precision == pytest.approx(expected, rel=0.15)
    # Row order would have leaked the classes: that is far outside the tolerance.
    leaked = metrics.rank_block(
        ones[:, :1] @ ones[:, :1].T, relevance.hits(0, len(ids)), ties_N=np.arange(len(ids))
    )
    assert leaked.mean_average_precision > 1.8 * expected


def test_the_order_of_gallery_rows_changes_nothing() -> None:
    query, gallery, relevance, ids = make_case(
        7, num_queries=9, num_gallery=30, num_classes=3, multi=False, coarse=True
    )
    found = metrics.ranking_metrics(query, gallery, relevance=relevance, gallery_ids=ids)
    order = np.random.default_rng(0).permutation(30)
    again = metrics.ranking_metrics(
        query,
        gallery[order],
        relevance=Relevance(relevance.query_QC, relevance.gallery_NC[order]),
        gallery_ids=[ids[row] for row in order],
    )
    assert np.array_equal(found.average_precision_Q, again.average_precision_Q, equal_nan=True)


def test_a_score_that_is_not_finite_is_refused() -> None:
    query, gallery, relevance, ids = make_case(
        1, num_queries=2, num_gallery=3, num_classes=2, multi=False, coarse=False
    )
    query[1, 0] = np.nan
    with pytest.raises(DataError, match="not a finite number"):
        metrics.ranking_metrics(query, gallery, relevance=relevance, gallery_ids=ids)


@pytest.mark.parametrize(("num_queries", "num_gallery"), [(0, 5), (4, 1)])
def test_no_query_and_a_gallery_of_one(num_queries: int, num_gallery: int) -> None:
    query, gallery, relevance, ids = make_case(
        2, num_queries=num_queries, num_gallery=num_gallery, num_classes=1, multi=False, coarse=False
    )
    found = metrics.ranking_metrics(query, gallery, relevance=relevance, gallery_ids=ids)
    assert found.average_precision_Q.tolist() == [1.0] * num_queries
    assert np.isnan(found.mean_average_precision) == (num_queries == 0)


@pytest.mark.parametrize("coarse", [False, True])
def test_first_hit_of_several_captions(coarse: bool) -> None:
    rng = np.random.default_rng(4)
    query, gallery, _, ids = make_case(
        9, num_queries=12, num_gallery=36, num_classes=2, multi=False, coarse=coarse
    )
    owners = rng.integers(0, 14, 36)  # some queries own several rows, some none
    places = metrics.first_hit_ranks(
        query, gallery, relevance=SameItem(np.arange(12), owners), gallery_ids=ids
    )
    for row in range(12):
        order = naive_order((query[row] @ gallery.T).tolist(), ids)
        own = [rank for rank, item in enumerate(order, start=1) if owners[item] == row]
        assert places[row] == (own[0] if own else 0)
    found = [rank for rank in places.tolist() if rank]
    assert metrics.recall_at(places, (5,))[5] == pytest.approx(np.mean([rank <= 5 for rank in found]))
    assert metrics.median_rank(places) == np.median(found)


def test_own_counts_match_the_rows() -> None:
    rule = SameItem(np.array([3, 1, 9]), np.array([1, 1, 3, 4]))
    assert rule.num_relevant().tolist() == rule.hits(0, 3).num_B.tolist() == [1, 2, 0]
    assert rule.hits(1, 3).column_H.tolist() == [0, 1]
    assert SameItem(np.array([3]), np.zeros(0, np.int64)).num_relevant().tolist() == [0]


def test_per_class_means_count_a_query_for_each_of_its_labels() -> None:
    member = membership([("cat",), ("cat", "dog"), ("emu",)], ("cat", "dog", "emu", "fox"))
    means = metrics.per_class_means(np.array([1.0, 0.5, np.nan]), member, ("cat", "dog", "emu", "fox"))
    assert means == {"cat": 0.75, "dog": 0.5}


def test_nothing_found_is_nan_not_a_warning() -> None:
    nothing = np.zeros(3, np.int64)
    assert np.isnan(metrics.recall_at(nothing, (1,))[1])
    assert np.isnan(metrics.median_rank(nothing))


@pytest.mark.parametrize("threads", ["1", "3", "2,1", "", "0"])
def test_metrics_are_those_of_one_thread(threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SORT_ELEMENTS", 70)
    rng = np.random.default_rng(5)
    query, gallery = (rng.integers(-2, 3, (rows, 2)).astype(np.float32) for rows in (40, 30))
    right = Relevance(*(np.eye(3, dtype=bool)[rng.integers(0, 3, rows)] for rows in (40, 30)))
    ids = [f"g{row}" for row in range(30)]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = metrics.ranking_metrics(query, gallery, relevance=right, gallery_ids=ids)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert metrics.num_threads() == {"1": 1, "3": 3, "2,1": 2}.get(threads, metrics.num_threads())
    together = metrics.ranking_metrics(query, gallery, relevance=right, gallery_ids=ids)
    np.testing.assert_array_equal(together.average_precision_Q, alone.average_precision_Q)
    np.testing.assert_array_equal(together.precision_L, alone.precision_L)
