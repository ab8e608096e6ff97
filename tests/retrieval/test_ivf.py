"""Inverted lists: near the exact answers, the same in any batch, filters before the search, k results always, torn files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval import ivf
from zscmr_ray.retrieval.exact import ExactIndex, Hits
from zscmr_ray.retrieval.ivf import IvfIndex, load_ivf
from zscmr_ray.retrieval.ivf_build import build_lists, write_lists
from zscmr_ray.retrieval.ivf_tuning import AskingRows, label_weights, tune
from zscmr_ray.retrieval.scoring import weigh_query

NUM_ROWS, DIMENSION, NUM_LISTS = 3000, 32, 32
BLOCKS = [
    SimpleNamespace(name="region", start=0, stop=20),
    SimpleNamespace(name="label", start=20, stop=32),
]
Floats = npt.NDArray[np.float32]


def unit_blocks(num: int, *, seed: int) -> Floats:
    """Clustered vectors of two unit blocks, as float16 holds them."""
    rng = np.random.default_rng(seed)
    rows = np.random.default_rng(0).standard_normal((40, DIMENSION))[rng.integers(0, 40, num)]
    rows += 0.4 * rng.standard_normal((num, DIMENSION))
    for block in BLOCKS:
        part = rows[:, block.start : block.stop]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows.astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module", params=["none", "sq8"])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> IvfIndex:
    exact = ExactIndex(unit_blocks(NUM_ROWS, seed=1).astype(np.float16))
    path = tmp_path_factory.mktemp("ivf") / "lists.faiss"
    write_lists(path, build_lists(exact.vectors_ND, num_lists=NUM_LISTS, quantizer=request.param))
    return load_ivf(path, exact, quantizer=request.param)


@pytest.fixture(autouse=True)
def _small_galleries_use_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ivf, "EXACT_ROWS", 50)


def asked(num: int = 24) -> Floats:
    return weigh_query(unit_blocks(num, seed=2), BLOCKS, label_weight=0.5)


def overlap(found: Hits, truth: Hits) -> float:
    return float(
        np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.rows_QK, truth.rows_QK, strict=True)])
    )


def test_all_lists_give_nearly_the_exact_answer_with_exact_scores(index: IvfIndex) -> None:
    queries = asked()
    truth = index.exact.search(queries, k=10)
    found = index.search(queries, k=10, num_probed_Q=NUM_LISTS)
    assert overlap(found, truth) > 0.98
    assert overlap(index.search(queries, k=10, num_probed_Q=1), truth) < 0.98
    for q, rows in enumerate(found.rows_QK):
        scores = index.exact.vectors_ND[rows].astype(np.float64) @ queries[q].astype(np.float64)
        np.testing.assert_allclose(found.scores_QK[q], scores, atol=1e-12)
        assert (np.diff(found.scores_QK[q]) <= 0).all()


def test_the_answer_does_not_depend_on_the_batch(index: IvfIndex) -> None:
    queries, probed = asked(), np.arange(24) % 5 + 1
    together = index.search(queries, k=7, num_probed_Q=probed)
    for q in range(24):
        alone = index.search(queries[q : q + 1], k=7, num_probed_Q=probed[q : q + 1])
        np.testing.assert_array_equal(alone.rows_QK[0], together.rows_QK[q])
        np.testing.assert_array_equal(alone.scores_QK[0], together.scores_QK[q])


def test_equal_vectors_come_in_the_order_of_their_rows() -> None:
    rows = unit_blocks(400, seed=3)
    rows[[11, 120, 300, 399]] = rows[5]
    exact = ExactIndex(rows)
    lists = IvfIndex(exact, build_lists(rows, num_lists=8, quantizer="sq8"), quantizer="sq8")
    assert lists.search(rows[5:6], k=5, num_probed_Q=1).rows_QK[0].tolist() == [5, 11, 120, 300, 399]


def test_a_filter_comes_before_the_search_and_gives_k_of_the_allowed(index: IvfIndex) -> None:
    queries, rng = asked(), np.random.default_rng(4)
    for share in (0.5, 0.05, 0.01):
        allowed = rng.random(NUM_ROWS) < share
        truth = index.exact.search(queries, k=10, allowed=allowed)
        found = index.search(queries, k=10, num_probed_Q=4, allowed=allowed)
        assert found.rows_QK.shape == (24, 10) and allowed[found.rows_QK].all()
        assert overlap(found, truth) > 0.8


def test_a_filter_far_from_the_query_reads_on_until_it_has_seen_enough(index: IvfIndex) -> None:
    query = asked(1)
    order, _ = index.rank_lists(query[0])
    allowed = np.isin(index.list_of_N, order[-6:])
    found = index.search(query, k=10, num_probed_Q=2, allowed=allowed)
    assert allowed[found.rows_QK].all()
    assert overlap(found, index.exact.search(query, k=10, allowed=allowed)) > 0.6


def test_fewer_rows_in_the_lists_than_k_are_made_up_exactly(index: IvfIndex) -> None:
    query = asked(1)
    truth = index.exact.search(query, k=1000)
    np.testing.assert_array_equal(index.search(query, k=1000, num_probed_Q=1).rows_QK, truth.rows_QK)
    with pytest.raises(DataError, match="k is larger"):
        index.search(query, k=NUM_ROWS + 1, num_probed_Q=1)


def test_tuning_reaches_the_target_on_queries_it_did_not_see(index: IvfIndex) -> None:
    own = np.arange(0, NUM_ROWS, 30)
    asking = {
        "image": AskingRows(index.exact.vectors_ND[own].astype(np.float32), own),
        "text": AskingRows(unit_blocks(100, seed=5), np.full(100, -1)),
    }
    tuning = tune(index, asking, BLOCKS, target=0.95)
    for side in asking:
        assert set(tuning.recall[side]) == {0.0, 0.5, 1.0}
        assert min(tuning.recall[side].values()) > 0.9
        assert min(tuning.probes.table[side].values()) >= 1
    # The weight of a query is read off its blocks.
    queries = weigh_query(unit_blocks(3, seed=6), BLOCKS, label_weight=0.3)
    assert label_weights(queries, BLOCKS).tolist() == [0.3] * 3
    assert label_weights(queries[:, :20], BLOCKS[:1]).tolist() == [0.0] * 3


@pytest.mark.long  # 256 centroids of every part, whatever the number of rows: 24 CPU-seconds
def test_product_quantisation_finds_nearly_the_same() -> None:
    exact = ExactIndex(unit_blocks(NUM_ROWS, seed=1))
    lists = build_lists(exact.vectors_ND, num_lists=NUM_LISTS, quantizer="pq")
    index = IvfIndex(exact, lists, quantizer="pq")
    queries = asked()
    found = index.search(queries, k=10, num_probed_Q=NUM_LISTS)
    assert overlap(found, exact.search(queries, k=10)) > 0.95


def test_lists_of_other_rows_and_torn_files_are_named(tmp_path: Path) -> None:
    rows = unit_blocks(300, seed=7)
    path = tmp_path / "lists.faiss"
    write_lists(path, build_lists(rows, num_lists=4, quantizer="sq8"))
    with pytest.raises(DataError, match="disagree"):
        load_ivf(path, ExactIndex(rows[:299]), quantizer="sq8")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"lists\.faiss"):
        load_ivf(path, ExactIndex(rows), quantizer="sq8")
