"""Groups of equal and near rows against dumb loops: chains, ties, all equal, none, one row, any block size."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from zscmr_ray.retrieval.duplicates import Groups, cosines, equal_groups, near_groups, num_pairs


def _near(vectors_ND: npt.NDArray[np.float16], threshold: float, **options: int) -> list[list[int]]:
    rank_N = np.arange(len(vectors_ND))
    found = near_groups(
        lambda start, stop: vectors_ND[start:stop], threshold=threshold, rank_N=rank_N, **options
    )
    return _lists(found)


def _lists(groups: Groups) -> list[list[int]]:
    lists: dict[int, list[int]] = {}
    for row, first in zip(groups.rows_M.tolist(), groups.first_M.tolist(), strict=True):
        lists.setdefault(first, []).append(row)
    assert all(first == rows[0] for first, rows in lists.items())
    assert len(lists) == groups.num_groups
    return list(lists.values())


def _naive(vectors_ND: npt.NDArray[np.float16], threshold: float) -> list[list[int]]:
    groups = [{row} for row in range(len(vectors_ND))]
    for a, b in itertools.combinations(range(len(vectors_ND)), 2):
        x, y = vectors_ND[a].astype(float), vectors_ND[b].astype(float)
        if np.dot(x, y) / (np.linalg.norm(x) * np.linalg.norm(y)) >= threshold - 1e-9:
            merged = next(g for g in groups if a in g) | next(g for g in groups if b in g)
            groups = [group for group in groups if not group & merged] + [merged]
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _plane(*degrees: float) -> npt.NDArray[np.float16]:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)


@pytest.mark.parametrize("block_rows", [1, 3, 64])
def test_a_chain_is_one_group_and_the_smallest_row_stands_for_it(block_rows: int) -> None:
    # 0 and 20 degrees are near through 10 only: cos 10 = .985, cos 20 = .940.
    vectors = _plane(20, 90, 10, 0, 91)
    assert _near(vectors, 0.97, block_rows=block_rows) == [[0, 2, 3], [1, 4]]
    assert _near(vectors, 0.99, block_rows=block_rows) == [[1, 4]]
    assert _near(vectors, 1.0, block_rows=block_rows) == []


@pytest.mark.parametrize("block_rows", [1, 2, 7, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_a_naive_loop(seed: int, block_rows: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, 5))
    vectors = (centres[rng.integers(0, 6, 40)] + 0.12 * rng.standard_normal((40, 5))).astype(np.float16)
    for threshold in (0.9, 0.98, 0.995):
        assert _near(vectors, threshold, block_rows=block_rows) == _naive(vectors, threshold)


def test_a_pair_exactly_at_the_threshold_is_near_in_every_place() -> None:
    vectors = np.array([[3, 4], [4, 3], [0, 1]], np.float16)
    assert cosines(vectors[:1], vectors[1:2]).tolist() == [0.96]
    for order in itertools.permutations(range(3)):
        found = _near(vectors[list(order)], 0.96, block_rows=2)
        assert [{order[row] for row in group} for group in found] == [{0, 1}]
        assert _near(vectors[list(order)], 0.9600001, block_rows=2) == []


def test_all_equal_none_one_and_no_rows() -> None:
    assert _near(np.ones((50, 3), np.float16), 1.0, block_rows=16) == [list(range(50))]
    assert _near(np.eye(4, dtype=np.float16), 0.5) == []
    assert _near(np.ones((1, 3), np.float16), 0.5) == []
    assert _near(np.ones((0, 3), np.float16), 0.5) == []
    assert _near(np.zeros((3, 3), np.float16), 0.5) == [], "a zero vector is near nothing"


def test_length_plays_no_part() -> None:
    vectors = (_plane(0, 1, 90) * np.array([[1], [40], [0.01]])).astype(np.float16)
    assert _near(vectors, 0.99) == [[0, 1]]


def test_rank_says_which_row_comes_first() -> None:
    vectors = np.ones((3, 2), np.float16)
    found = near_groups(lambda a, b: vectors[a:b], threshold=0.9, rank_N=np.array([2, 0, 1]))
    assert (found.rows_M.tolist(), found.first_M.tolist()) == ([1, 2, 0], [1, 1, 1])


def test_every_pair_is_counted_once() -> None:
    counted: list[int] = []
    vectors = np.eye(11, dtype=np.float16)
    near_groups(
        lambda a, b: vectors[a:b], threshold=0.9, rank_N=np.arange(11), advance=counted.append, block_rows=4
    )
    assert sum(counted) == num_pairs(11) == 55


def test_equal_digests() -> None:
    digests = np.array([b"b", b"", b"a", b"b", b"", b"a", b"b", b"c"], "S32")
    assert _lists(equal_groups(digests, rank_N=np.arange(8))) == [[0, 3, 6], [2, 5]]
    assert _lists(equal_groups(digests[:0], rank_N=np.arange(0))) == []
    assert _lists(equal_groups(np.array([b"", b""], "S32"), rank_N=np.arange(2))) == []
