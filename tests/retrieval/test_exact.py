"""Exact search against a naive loop, with ties, filters, degenerate and broken galleries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval.exact import ExactIndex, load_exact, recall_at_k

FloatArray = npt.NDArray[np.float32]


def unit_rows(num: int, dimension: int, *, seed: int) -> FloatArray:
    rows = np.random.default_rng(seed).standard_normal((num, dimension)).astype(np.float16)
    return (rows / np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True)).astype(np.float32)


def naive(queries: FloatArray, gallery: FloatArray, k: int, allowed: npt.NDArray[np.bool_] | None = None):
    """Sort every row by (score down, row up), in Python floats."""
    result = []
    for query in queries:
        pairs = []
        for row, vector in enumerate(gallery):
            if allowed is None or allowed[row]:
                score = sum(float(a) * float(b) for a, b in zip(query, vector, strict=True))
                pairs.append((-round(score, 12), row))
        result.append([row for _, row in sorted(pairs)[:k]])
    return result


@pytest.mark.parametrize("num_queries", [1, 2, 32])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_search_equals_a_naive_loop(num_queries: int, k: int) -> None:
    gallery, queries = unit_rows(60, 12, seed=1), unit_rows(num_queries, 12, seed=2)
    hits = ExactIndex(gallery).search(queries, k=k)
    assert hits.rows_QK.tolist() == naive(queries, gallery, k)
    expected = np.take_along_axis(queries @ gallery.T, hits.rows_QK, axis=1)
    np.testing.assert_allclose(hits.scores_QK, expected, atol=1e-6)


@pytest.mark.parametrize("num_queries", [1, 5])
def test_equal_scores_go_to_the_lower_row_even_when_they_cross_the_boundary(num_queries: int) -> None:
    # 100 copies of one vector in a shuffled gallery: far more ties at the k-th place than the search's slack.
    gallery = np.concatenate([np.repeat(unit_rows(1, 33, seed=3), 100, axis=0), unit_rows(50, 33, seed=4)])
    gallery = gallery[np.random.default_rng(5).permutation(150)]
    query = unit_rows(1, 33, seed=3)
    hits = ExactIndex(gallery).search(np.repeat(query, num_queries, axis=0), k=20)
    copies = np.flatnonzero((gallery == query).all(axis=1))
    for rows in hits.rows_QK:
        assert rows.tolist() == copies[:20].tolist()
    assert len(set(hits.scores_QK.ravel().tolist())) == 1


def test_the_answer_does_not_depend_on_the_batch() -> None:
    gallery, queries = unit_rows(500, 65, seed=6), unit_rows(40, 65, seed=7)
    index = ExactIndex(gallery)
    together = index.search(queries, k=9)
    for q in range(len(queries)):
        alone = index.search(queries[q : q + 1], k=9)
        assert alone.rows_QK.tolist() == together.rows_QK[q : q + 1].tolist()
        assert alone.scores_QK.tolist() == together.scores_QK[q : q + 1].tolist()


@pytest.mark.parametrize("num_queries", [1, 3])
def test_a_filter_is_applied_before_the_search(num_queries: int) -> None:
    gallery, queries = unit_rows(80, 8, seed=8), unit_rows(num_queries, 8, seed=9)
    allowed = np.random.default_rng(10).random(80) < 0.2
    k = int(allowed.sum())
    hits = ExactIndex(gallery).search(queries, k=k, allowed=allowed)
    assert hits.rows_QK.tolist() == naive(queries, gallery, k, allowed)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("order", ["random", "rising", "falling"])
def test_many_blocks_in_any_order_equal_a_naive_loop(
    monkeypatch: pytest.MonkeyPatch, threads: int, order: str
) -> None:
    # Rising scores are the worst case of a running threshold: every row passes it.
    monkeypatch.setattr("zscmr_ray.retrieval.exact._BLOCK_ROWS", 16)
    monkeypatch.setattr("zscmr_ray.retrieval.exact._FIRST_ROWS", 3)
    monkeypatch.setattr("zscmr_ray.retrieval.exact.faiss.omp_get_max_threads", lambda: threads)
    gallery, queries = unit_rows(150, 9, seed=30), unit_rows(3, 9, seed=31)
    if order != "random":
        gallery = gallery[np.argsort(gallery @ queries[0] * (1 if order == "rising" else -1))]
    index = ExactIndex(gallery)
    for num in (1, 3):
        for k in (1, 5, 150):
            assert index.search(queries[:num], k=k).rows_QK.tolist() == naive(queries[:num], gallery, k)


def test_a_filter_larger_than_one_gathered_block_and_with_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zscmr_ray.retrieval.exact._BLOCK_ROWS", 7)
    gallery = np.concatenate([unit_rows(40, 6, seed=11), np.repeat(unit_rows(1, 6, seed=12), 40, axis=0)])
    allowed = np.arange(80) % 2 == 1
    hits = ExactIndex(gallery).search(unit_rows(2, 6, seed=12), k=5, allowed=allowed)
    assert hits.rows_QK[0].tolist() == [41, 43, 45, 47, 49]
    assert hits.rows_QK[1].tolist() == naive(unit_rows(2, 6, seed=12), gallery, 5, allowed)[1]


def test_k_larger_than_the_gallery_says_what_to_ask_for() -> None:
    index = ExactIndex(unit_rows(3, 4, seed=13))
    with pytest.raises(DataError) as caught:
        index.search(unit_rows(1, 4, seed=14), k=4)
    assert caught.value.got == "k=4"
    assert caught.value.remedy == "ask for k <= 3"
    with pytest.raises(DataError, match="the filtered items"):
        index.search(unit_rows(1, 4, seed=14), k=2, allowed=np.array([True, False, False]))


def test_broken_queries_and_galleries_are_refused() -> None:
    index = ExactIndex(unit_rows(3, 4, seed=15))
    with pytest.raises(DataError, match="no vector of this index"):
        index.search(unit_rows(1, 5, seed=16), k=1)
    with pytest.raises(DataError, match="NaN"):
        index.search(np.full((1, 4), np.nan, np.float32), k=1)
    with pytest.raises(DataError, match="at least 1"):
        index.search(unit_rows(1, 4, seed=16), k=0)
    with pytest.raises(DataError, match="row 1"):
        ExactIndex(np.array([[0, 1], [np.inf, 0]], np.float32))
    with pytest.raises(DataError, match="float32"):
        ExactIndex(np.zeros((2, 2), np.float64))


def test_no_queries_give_no_hits_and_an_empty_gallery_is_smaller_than_any_k() -> None:
    assert ExactIndex(unit_rows(3, 4, seed=17)).search(np.zeros((0, 4), np.float32), k=2).rows_QK.shape == (
        0,
        2,
    )
    with pytest.raises(DataError, match="larger than the gallery"):
        ExactIndex(np.zeros((0, 4), np.float32)).search(np.zeros((1, 4), np.float32), k=1)


def test_saved_and_mapped_is_the_same_index(tmp_path: Path) -> None:
    gallery, queries = unit_rows(30, 5, seed=18), unit_rows(4, 5, seed=19)
    ExactIndex(gallery).save(tmp_path / "vectors.npy")
    mapped = load_exact(tmp_path / "vectors.npy")
    assert isinstance(mapped.vectors_ND.base, np.memmap) or isinstance(mapped.vectors_ND, np.memmap)
    assert mapped.vectors_ND.flags.aligned
    assert (
        mapped.search(queries, k=6).rows_QK.tolist()
        == ExactIndex(gallery).search(queries, k=6).rows_QK.tolist()
    )


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    ExactIndex(unit_rows(30, 5, seed=20)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"vectors\.npy"):
        load_exact(path)


def test_recall_is_one_and_notices_a_search_that_misses() -> None:
    gallery, queries = unit_rows(200, 16, seed=21), unit_rows(20, 16, seed=22)
    assert recall_at_k(ExactIndex(gallery), queries) == 1.0

    class Lossy(ExactIndex):
        def search(self, queries_QD, *, k, allowed=None):  # type: ignore[no-untyped-def]
            hits = super().search(queries_QD, k=k + 1, allowed=allowed)
            return type(hits)(hits.scores_QK[:, 1:], hits.rows_QK[:, 1:])

    assert recall_at_k(Lossy(gallery), queries) == pytest.approx(0.9)
    assert recall_at_k(ExactIndex(gallery[:4]), queries) == 1.0
