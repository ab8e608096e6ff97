"""Exact search: queries/s of a batch of 32 against one query at a time, and one at a time against faiss's default.

Two galleries of 100,000 unit vectors: 512-d (regions alone) and 1,512-d (regions and a 1000-class label block). The
three contenders take turns in every round, so that a slow spell of the machine hits all of them; ratios are medians
over the rounds. Recall@10 is checked against brute force in float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from zscmr_ray.cli.session import prepare_environment

# Before faiss loads libgomp: the service runs with this short spin. With the default one faiss's idle threads hold the
# second core while numpy's product wants it, and the single query is 0.94 of faiss's speed instead of 1.5.
prepare_environment()

import faiss  # noqa: E402
import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
from contract import report  # noqa: E402

from zscmr_ray.retrieval.exact import ExactIndex, recall_at_k  # noqa: E402

NUM_ROWS = 100_000
DIMENSIONS = (512, 1512)
BATCH = 32
K = 10
ROUNDS = 30
BAR_BATCHING = 5.0
BAR_SINGLE = 1.0
SEED = 0

FloatArray = npt.NDArray[np.float32]


def main() -> None:
    detail: dict[str, object] = {"num_rows": NUM_ROWS, "k": K, "rounds": ROUNDS}
    figures = {dimension: measure(dimension) for dimension in DIMENSIONS}
    for dimension, figure in figures.items():
        detail[f"{dimension}d"] = {name: round(value, 4) for name, value in figure.items()}
    holds = all(
        figure["batch32_over_batch1"] >= BAR_BATCHING
        and figure["batch1_over_faiss_default"] >= BAR_SINGLE
        and figure["recall_at_10"] == 1.0
        for figure in figures.values()
    )
    detail["bars"] = {
        "batch32_over_batch1": BAR_BATCHING,
        "batch1_over_faiss_default": BAR_SINGLE,
        "recall_at_10": 1.0,
    }
    report(
        name="search_batch",
        value=figures[DIMENSIONS[0]]["batch32_over_batch1"],
        bar=BAR_BATCHING,
        holds=holds,
        unit="queries/s at batch 32 / queries/s at batch 1",
        detail=detail,
        seed=SEED,
    )


def measure(dimension: int) -> dict[str, float]:
    """Rates and paired ratios on one gallery."""
    rng = np.random.default_rng(SEED)
    gallery_ND, queries_QD = unit_rows(rng, NUM_ROWS, dimension), unit_rows(rng, 256, dimension)
    index = ExactIndex(gallery_ND)
    baseline = faiss.IndexFlatIP(dimension)
    baseline.add(gallery_ND)
    one = [queries_QD[i : i + 1] for i in range(ROUNDS)]
    many = [queries_QD[i * 7 : i * 7 + BATCH] for i in range(ROUNDS)]

    def faiss_default(queries: FloatArray) -> object:
        return baseline.search(queries, K)

    def ours(queries: FloatArray) -> object:
        return index.search(queries, k=K)

    for warm in (faiss_default, ours):
        warm(one[0])
        warm(many[0])
    times = np.array(
        [
            [
                seconds(faiss_default, one[i]),
                seconds(ours, one[i]),
                seconds(ours, many[i]),
                seconds(faiss_default, many[i]),
            ]
            for i in range(ROUNDS)
        ]
    )
    median = np.median(times, axis=0)
    return {
        "batch32_over_batch1": float(np.median(BATCH * times[:, 1] / times[:, 2])),
        "batch1_over_faiss_default": float(np.median(times[:, 0] / times[:, 1])),
        "batch32_over_faiss_default_batch32": float(np.median(times[:, 3] / times[:, 2])),
        "batch1_queries_per_s": float(1 / median[1]),
        "batch32_queries_per_s": float(BATCH / median[2]),
        "faiss_default_batch1_queries_per_s": float(1 / median[0]),
        "faiss_default_batch32_queries_per_s": float(BATCH / median[3]),
        "recall_at_10": recall_at_k(index, queries_QD[:BATCH], k=K),
    }


def unit_rows(rng: np.random.Generator, num: int, dimension: int) -> FloatArray:
    """Unit vectors as embeddings store them: rounded to float16."""
    rows = rng.standard_normal((num, dimension), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float16).astype(np.float32)


def seconds(search: Callable[[FloatArray], object], queries: FloatArray) -> float:
    """Wall time of one search, in seconds."""
    start = time.perf_counter()
    search(queries)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
