"""Chance levels against simulated random rankings."""

from __future__ import annotations

import numpy as np
import pytest

from zscmr_ray.retrieval import chance
from zscmr_ray.retrieval.metrics import first_hit_ranks, median_rank, ranking_metrics, recall_at
from zscmr_ray.retrieval.relevance import Relevance, SameItem


@pytest.mark.parametrize(("relevant", "gallery"), [(1, 10), (3, 10), (10, 10), (7, 50)])
def test_expectations_match_simulation(relevant: int, gallery: int) -> None:
    trials = 20_000
    scores = np.random.default_rng(0).standard_normal((trials, gallery)).astype(np.float32)
    right = np.arange(gallery)[:, None] < relevant
    found = ranking_metrics(
        scores,
        np.eye(gallery, dtype=np.float32),
        relevance=Relevance(np.ones((trials, 1), bool), right),
        gallery_ids=[str(row) for row in range(gallery)],
    )
    counts = np.array([relevant])
    for expected, values in (
        (chance.expected_average_precision(counts, gallery), found.average_precision_Q),
        (chance.expected_average_precision_at_r(counts, gallery), found.average_precision_at_r_Q),
        (chance.expected_precision_at_r(counts, gallery), found.precision_at_r_Q),
    ):
        error = values.std() / np.sqrt(trials)
        assert values.mean() == pytest.approx(expected[0], abs=4 * error + 1e-9)


def test_first_hit_matches_simulation_with_several_own_items() -> None:
    gallery, trials = 30, 20_000
    own_of = np.array([1, 1, 5, 2])
    owners = np.concatenate([np.repeat(np.arange(4), own_of), np.full(gallery - own_of.sum(), 9)])
    scores = np.random.default_rng(1).standard_normal((trials, gallery)).astype(np.float32)
    queries = np.arange(trials) % 4
    ranks = first_hit_ranks(
        scores,
        np.eye(gallery, dtype=np.float32),
        relevance=SameItem(queries, owners),
        gallery_ids=[str(row) for row in range(gallery)],
    )
    expected = chance.expected_recall_at(own_of, gallery, cutoffs=(1, 5, 10))
    for cutoff, share in recall_at(ranks, (1, 5, 10)).items():
        assert share == pytest.approx(expected[cutoff], abs=0.012)
    assert median_rank(ranks) == pytest.approx(chance.expected_median_rank(own_of, gallery), abs=1)


def test_published_chance_level_of_five_equal_unseen_classes() -> None:
    # Wikipedia with 5 unseen classes and the train rows as gallery: chance is about .22 (SCIENCE 4).
    assert chance.expected_average_precision(np.array([217]), 1086)[0] == pytest.approx(0.205, abs=0.01)


def test_degenerate_galleries() -> None:
    assert chance.expected_average_precision(np.array([1]), 1).tolist() == [1.0]
    assert np.isnan(chance.expected_average_precision(np.array([0]), 5)).all()
    assert np.isnan(chance.expected_median_rank(np.array([0]), 5))
    assert np.isnan(chance.expected_recall_at(np.zeros(0, np.int64), 0, cutoffs=(1,))[1])
    assert chance.expected_recall_at(np.array([2]), 2, cutoffs=(0, 1))[1] == 1.0
