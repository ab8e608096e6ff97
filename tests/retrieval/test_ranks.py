"""Ranks of hits against an ordering by hand: no ties, some, many, nothing but ties; by counting, sorting and keys."""

from __future__ import annotations

import numpy as np
import pytest

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval import ranks
from zscmr_ray.retrieval.relevance import Hits, Relevance, SameItem

NUM_GALLERY = 90


def by_hand(scores: np.ndarray, right: np.ndarray, ties: np.ndarray) -> list[int]:
    order = sorted(range(len(scores)), key=lambda row: (-float(scores[row]), int(ties[row])))
    return [place for place, row in enumerate(order, start=1) if right[row]]


@pytest.mark.parametrize("distinct", [1, 3, 40, 10**9])
@pytest.mark.parametrize("few_hits", [0, 99])
@pytest.mark.parametrize("few_ties", [0, 99])
@pytest.mark.parametrize("multi", [False, True])
def test_ranks_are_those_of_the_whole_order(
    distinct: int, few_hits: int, few_ties: int, multi: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "FEW_HITS", few_hits)
    monkeypatch.setattr(ranks, "FEW_TIES", few_ties)
    monkeypatch.setattr(ranks, "PIECE_ELEMENTS", 3 * NUM_GALLERY)
    rng = np.random.default_rng(distinct + few_hits)
    scores = (rng.integers(-distinct, distinct, (7, NUM_GALLERY)) / distinct).astype(np.float32)
    ties = rng.permutation(NUM_GALLERY)
    codes = [np.eye(4, dtype=bool)[rng.integers(0, 4, rows)] for rows in (9, NUM_GALLERY)]
    query, gallery = [rng.random((len(one), 4)) < 0.3 for one in codes] if multi else codes
    rule = Relevance(query, gallery)
    hits = rule.hits(2, 9)
    found = ranks.hit_ranks(scores, hits, ties_N=ties)
    for row in range(7):
        right = (gallery & query[row + 2]).any(1)
        assert found[hits.row_H == row].tolist() == by_hand(scores[row], right, ties)
        assert hits.num_B[row] == right.sum()


def test_both_zeros_are_one_score() -> None:
    scores = np.array([[0.0, -0.0, 0.5]], np.float32)
    hits = SameItem(np.array([1]), np.array([1, 0, 2])).hits(0, 1)
    assert ranks.hit_ranks(scores, hits, ties_N=np.array([2, 1, 0])).tolist() == [3]
    assert ranks.hit_ranks(scores, hits, ties_N=np.array([1, 2, 0])).tolist() == [2]


@pytest.mark.parametrize("few_ties", [0, 99])
@pytest.mark.parametrize("base", [0.7, -0.7, 0.0, 1e-40])
def test_scores_one_bit_apart_keep_their_order(
    base: float, few_ties: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "FEW_HITS", 0)
    monkeypatch.setattr(ranks, "FEW_TIES", few_ties)
    rng = np.random.default_rng(1)
    steps = rng.integers(-6, 7, (5, NUM_GALLERY)).astype(np.int32)
    bits = np.full_like(steps, np.float32(base).view(np.int32))
    # A bit more of the integer is the next float; around zero the sign is its own.
    scores = (bits + steps).view(np.float32) if abs(base) > 0 else (steps * 1e-45).astype(np.float32)
    ties, right = rng.permutation(NUM_GALLERY), rng.random((5, NUM_GALLERY)) < 0.4
    row, column = np.nonzero(right)
    found = ranks.hit_ranks(scores, Hits(row, column, right.sum(1)), ties_N=ties)
    for number in range(5):
        assert found[row == number].tolist() == by_hand(scores[number], right[number], ties)


@pytest.mark.parametrize("few_hits", [0, 8])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(
    bad: float, few_hits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "FEW_HITS", few_hits)
    hits = SameItem(np.array([1]), np.array([1, 0])).hits(0, 1)
    with pytest.raises(DataError, match="1 NaN or infinite"):
        ranks.hit_ranks(np.array([[0.5, bad]], np.float32), hits, ties_N=np.arange(2))


def test_nothing_right_nowhere() -> None:
    nothing = Relevance(np.zeros((3, 2), bool), np.ones((5, 2), bool)).hits(0, 3)
    assert ranks.hit_ranks(np.zeros((3, 5), np.float32), nothing, ties_N=np.arange(5)).tolist() == []
    for classes in (0, 2):
        empty = Relevance(np.zeros((0, classes), bool), np.zeros((0, classes), bool)).hits(0, 0)
        assert empty.num_B.tolist() == []
