"""Sort keys and first hits: one order, whatever the rows' order, the block size or the sign of zero."""

from __future__ import annotations

import numpy as np
import pytest

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval.ordering import query_blocks, sort_keys, tie_ranks, top_hits


def test_tie_ranks_are_a_permutation_that_follows_the_ids_not_the_rows() -> None:
    ids = [f"class{number // 50}/{number:04d}" for number in range(500)]
    ranks = tie_ranks(ids)
    assert sorted(ranks.tolist()) == list(range(500))
    order = np.random.default_rng(0).permutation(500)
    assert np.array_equal(tie_ranks([ids[row] for row in order]), ranks[order])
    assert abs(np.corrcoef(ranks, np.arange(500))[0, 1]) < 0.15
    assert len(tie_ranks([])) == 0


def test_negative_zero_ties_with_zero() -> None:
    keys = sort_keys(np.array([[0.0, -0.0]], np.float32), np.array([[1, 0]]))
    assert keys[0, 1] < keys[0, 0]


def test_keys_order_every_float_as_the_numbers_do() -> None:
    values = np.array([[3e38, 1.5, 1e-40, 0.0, -1e-40, -2.0, -3e38]], np.float32)
    keys = sort_keys(values, np.zeros((1, 7), np.int64))
    assert np.all(np.diff(keys[0]) > 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_keys_refuse_what_is_not_finite(bad: float) -> None:
    with pytest.raises(DataError, match="1 NaN or infinite"):
        sort_keys(np.array([[0.5, bad]], np.float32), np.zeros((1, 2), np.int64))


@pytest.mark.parametrize("k", [0, 3, 99])
def test_top_hits_follow_the_same_order(k: int) -> None:
    rng = np.random.default_rng(8)
    query, gallery = (rng.integers(-1, 2, (rows, 3)).astype(np.float32) for rows in (6, 20))  # many ties
    ids = [f"item-{row}" for row in range(20)]
    rows, scores = top_hits(query, gallery, k=k, gallery_ids=ids)
    assert rows.shape == (6, min(k, 20))
    place = tie_ranks(ids)
    for row in range(6):
        expected = sorted(range(20), key=lambda item: (-float(query[row] @ gallery[item]), place[item]))[:k]
        assert rows[row].tolist() == expected
        assert scores[row] == pytest.approx((query[row] @ gallery.T)[expected])


@pytest.mark.parametrize("num_gallery", [0, 1, 10**9])
def test_blocks_cover_every_query_once(num_gallery: int) -> None:
    rows = [row for start, stop in query_blocks(7, num_gallery) for row in range(start, stop)]
    assert rows == list(range(7))
