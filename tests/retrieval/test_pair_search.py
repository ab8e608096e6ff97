"""Searches by pair scores: rankings against dense loops, shortlists, and the protocol on top."""

from __future__ import annotations

import numpy as np
import pytest

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval.ordering import tie_ranks
from zscmr_ray.retrieval.pair_search import PairTowers, reranked
from zscmr_ray.retrieval.protocol import ClassGroups, evaluate_method
from zscmr_ray.retrieval.searches import DIRECTIONS, Corpus, Towers

NUM_ITEMS = 24
GROUPS = ClassGroups(seen=("a", "b"), unseen=("c", "d"))


def corpus() -> Corpus:
    partition = np.array(["test" if item % 3 == 0 else "train" for item in range(NUM_ITEMS)])
    # Two captions for every other item.
    owners = np.repeat(np.arange(NUM_ITEMS), [1 + item % 2 for item in range(NUM_ITEMS)])
    return Corpus(
        [f"i{n}" for n in range(NUM_ITEMS)], [("abcd"[n % 4],) for n in range(NUM_ITEMS)], partition, owners
    )


def towers(seed: int = 0) -> Towers:
    rng = np.random.default_rng(seed)

    def unit(count: int) -> np.ndarray:
        rows = rng.normal(size=(count, 4)).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return Towers.symmetric(unit(NUM_ITEMS), unit(len(corpus().text_item_M)))


def cosines(vectors: Towers) -> np.ndarray:
    return vectors.image_gallery_ND @ vectors.text_gallery_MD.T


def test_reranked_is_the_loop() -> None:
    rng = np.random.default_rng(1)
    vector, pair = (rng.uniform(-1, 1, size=(7, 20)).astype(np.float32) for _ in range(2))
    vector[:, 5] = vector[:, 6]  # a tie, settled by the ids' hashes
    ties = tie_ranks([f"g{n}" for n in range(20)])
    for top_k in (1, 6, 20, 50):
        order = np.argsort(-reranked(vector, pair, top_k=top_k, ties_N=ties), axis=1, kind="stable")
        for row in range(7):
            by_vector = sorted(range(20), key=lambda n, row=row: (-vector[row, n], ties[n]))
            first = sorted(by_vector[:top_k], key=lambda n, row=row: -pair[row, n])
            assert order[row, : min(top_k, 20)].tolist() == first
            rest = [vector[row, n] for n in order[row, top_k:]]
            assert rest == [vector[row, n] for n in by_vector[top_k:]]
    assert np.array_equal(reranked(vector, pair, top_k=0, ties_N=ties), vector)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_search_cuts_the_same_rows_as_one_by_vectors(direction: str) -> None:
    vectors, rows = towers(), corpus()
    queries, gallery = np.array([3, 0, 9]), np.array([1, 2, 7, 8])
    asked = {"query_items": queries, "gallery_items": gallery, "direction": direction}
    by_vector, by_pair = vectors.search(rows, **asked), PairTowers(cosines(vectors)).search(rows, **asked)
    assert by_vector.gallery_ids == by_pair.gallery_ids
    assert np.array_equal(by_vector.query_items_Q, by_pair.query_items_Q)
    assert np.array_equal(by_vector.gallery_items_N, by_pair.gallery_items_N)
    np.testing.assert_allclose(by_pair.scores(1, 3), by_vector.scores(1, 3), atol=1e-6)


def test_the_protocol_gives_the_same_numbers_for_the_same_scores() -> None:
    vectors = towers()
    settings = {"num_resamples": 20, "seed": 1}
    expected = evaluate_method(vectors, corpus(), GROUPS, **settings)
    for other in (
        PairTowers(cosines(vectors)),
        PairTowers(cosines(vectors), vectors, top_k=4),  # what re-ranks agrees with what is re-ranked
        PairTowers(cosines(towers(5)), vectors, top_k=0),  # nothing is re-ranked
    ):
        found = evaluate_method(other, corpus(), GROUPS, **settings)
        for condition, numbers in expected["classes"].items():
            for direction, values in numbers.items():
                assert found["classes"][condition][direction]["map"] == pytest.approx(values["map"], abs=1e-9)
        assert found["instance"] == expected["instance"]


def test_a_pair_that_was_not_scored_is_never_ranked() -> None:
    holes = cosines(towers())
    holes[:, 3] = np.nan
    with pytest.raises(DataError, match="not a finite number"):
        evaluate_method(PairTowers(holes), corpus(), GROUPS, num_resamples=20)
