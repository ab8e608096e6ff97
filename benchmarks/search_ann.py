"""Approximate against exact search: a million real region vectors asked with held-out captions, recall@10 and queries/s.

The gallery is every region of 21,591 pictures through FGAN's trained region head (search_ann_data.py makes it once:
`make bench-data`), indexed by `zscmr index` itself with `index.kind=ivf`: lists read are tuned on captions of the index,
recall and time are measured here on captions of pictures that neither training nor tuning saw. Exact search is the flat
index over the same vectors in float32. Contenders take turns in every round; ratios are medians over the rounds. Load is
a fresh process from start to first answer, checksums verified.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zscmr_ray.cli.session import prepare_environment

prepare_environment()

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
from contract import report  # noqa: E402
from search_ann_data import QUERIES, make_config  # noqa: E402
from search_ann_regions import SHARED  # noqa: E402

from zscmr_ray.machine import peak_rss_bytes  # noqa: E402
from zscmr_ray.retrieval.exact import ExactIndex, Hits  # noqa: E402
from zscmr_ray.retrieval.gallery import Gallery  # noqa: E402
from zscmr_ray.stages import stage_store  # noqa: E402
from zscmr_ray.stages.index import run_index  # noqa: E402

BAR_ONE, BAR_MANY, BAR_RECALL, BAR_LOAD_S, BAR_ROWS = 20.0, 5.0, 0.95, 30.0, 1_000_000
NUM_QUERIES, BATCH, K, ROUNDS, SEED = 512, 32, 10, 12, 0
CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256)
UNIT = "queries/s of inverted lists / queries/s of exact search, one query at a time, recall@10 >= 0.95"

FloatArray = npt.NDArray[np.float32]
_FIRST_ANSWER = """
import time
started = time.perf_counter()
import numpy as np
import sys
from zscmr_ray.serving.searcher import Searcher, SearchTask
from zscmr_ray.storage import Store
searcher = Searcher(Store(sys.argv[1]))
query = np.load(sys.argv[2], mmap_mode="r")[0].astype(np.float32)
hits = searcher.search([SearchTask(query, "image", 10, asked="text")])[0].hits
assert len(hits) == 10
print(time.perf_counter() - started)
"""


def main() -> None:
    """Measure and report; without the data, say so."""
    config = make_config()
    if not QUERIES.exists():
        reason = "run `make bench-data` first" if SHARED.exists() else "no shared data beside the checkout"
        report(name="search_ann", value=None, bar=BAR_ONE, holds=False, unit=UNIT, detail={"reason": reason})
        return
    began_s = time.perf_counter()
    built = run_index(config)
    detail: dict[str, Any] = {"index_s": None if built.skipped else round(time.perf_counter() - began_s, 1)}
    detail["load_to_first_answer_s"] = load_s = first_answer_s(stage_store(config, "index").uri)
    gallery = Gallery(Path(stage_store(config, "index").uri) / "image")
    assert gallery.lists is not None and gallery.probes is not None
    figures = measure(gallery)
    detail |= figures | {
        "rows": gallery.num_rows,
        "index": {name: built.info["segments"][0][name] for name in ("kinds", "recall_at_10", "rows")},
        "peak_gb": round(peak_rss_bytes() / 1e9, 2),
    }
    bars = {
        "rows": (gallery.num_rows, BAR_ROWS),
        "recall_at_10": (figures["recall_at_10"], BAR_RECALL),
        "batch1": (figures["batch1_ratio"], BAR_ONE),
        "batch32": (figures["batch32_ratio"], BAR_MANY),
        "load": (-load_s, -BAR_LOAD_S),
    }
    detail["bars"] = {name: abs(bar) for name, (_, bar) in bars.items()}
    holds = all(got >= bar for got, bar in bars.values())
    report(
        name="search_ann",
        value=figures["batch1_ratio"],
        bar=BAR_ONE,
        holds=holds,
        unit=UNIT,
        detail=detail,
        seed=SEED,
    )


def first_answer_s(index_uri: str) -> float:
    """Seconds that a fresh process takes from its start to its first answer, imports and checksums included."""
    command = [sys.executable, "-c", _FIRST_ANSWER, index_uri, str(QUERIES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(float(done.stdout.split()[-1]), 2)


def measure(gallery: Gallery) -> dict[str, Any]:
    """Recall and rates at the tuned number of lists, and along the curve."""
    lists = gallery.lists
    assert lists is not None and gallery.probes is not None
    exact = ExactIndex(gallery.index.vectors_ND.astype(np.float32))
    every = np.load(QUERIES, mmap_mode="r")
    chosen = np.sort(
        np.random.default_rng(SEED).choice(len(every), min(NUM_QUERIES, len(every)), replace=False)
    )
    queries_QD = every[chosen].astype(np.float32)
    truth = join(
        [exact.search(queries_QD[start : start + 128], k=K) for start in range(0, len(queries_QD), 128)]
    )
    tuned = gallery.probes.number("text", 0.0)

    def approximate(number: int) -> Callable[[FloatArray], Hits]:
        return lambda queries: lists.search(queries, k=K, num_probed_Q=number)

    contenders = {"exact": lambda queries: exact.search(queries, k=K), "ivf": approximate(tuned)}
    rates = race(contenders, queries_QD)
    found = in_batches(approximate(tuned), queries_QD)
    alone = join([approximate(tuned)(queries_QD[q : q + 1]) for q in range(64)])
    return {
        "lists_read": tuned,
        "recall_at_10": round(recall(found, truth), 4),
        "batch1_ratio": round(float(np.median(rates["exact", 1] / rates["ivf", 1])), 2),
        "batch32_ratio": round(float(np.median(rates["exact", BATCH] / rates["ivf", BATCH])), 2),
        "queries_per_s": {
            f"{name}_batch{size}": round(size / float(np.median(times)), 1)
            for (name, size), times in rates.items()
        },
        "same_answer_in_any_batch": bool((alone.rows_QK == found.rows_QK[:64]).all()),
        "curve": [curve_point(approximate(number), number, queries_QD, truth) for number in CURVE],
    }


def curve_point(
    search: Callable[[FloatArray], Hits], number: int, queries_QD: FloatArray, truth: Hits
) -> dict[str, float]:
    """Recall and rates with so many lists."""
    found = in_batches(search, queries_QD)
    one = [seconds(search, queries_QD[q : q + 1]) for q in range(48)]
    many = [seconds(search, queries_QD[start : start + BATCH]) for start in range(0, 6 * BATCH, BATCH)]
    return {
        "lists_read": number,
        "recall_at_10": round(recall(found, truth), 4),
        "batch1_queries_per_s": round(1 / float(np.median(one)), 1),
        f"batch{BATCH}_queries_per_s": round(BATCH / float(np.median(many)), 1),
    }


def race(
    contenders: dict[str, Callable[[FloatArray], Hits]], queries_QD: FloatArray
) -> dict[tuple[str, int], npt.NDArray[np.float64]]:
    """Seconds of every contender with one query and with a batch, in turns: (name, batch) -> one value a round."""
    times: dict[tuple[str, int], list[float]] = {}
    for turn in range(-1, ROUNDS):
        for size in (1, BATCH):
            # Several single queries make up for the noise of one.
            starts = [(turn + 1) * BATCH + place for place in range(4 if size == 1 else 1)]
            for name, search in contenders.items():
                taken = [seconds(search, queries_QD[start : start + size]) for start in starts]
                if turn >= 0:
                    times.setdefault((name, size), []).append(float(np.mean(taken)))
    return {key: np.array(values) for key, values in times.items()}


def in_batches(search: Callable[[FloatArray], Hits], queries_QD: FloatArray) -> Hits:
    return join([search(queries_QD[start : start + BATCH]) for start in range(0, len(queries_QD), BATCH)])


def join(parts: list[Hits]) -> Hits:
    return Hits(
        np.concatenate([part.scores_QK for part in parts]), np.concatenate([part.rows_QK for part in parts])
    )


def recall(found: Hits, truth: Hits) -> float:
    """Share of the exact neighbours' scores that were reached: equal scores are no misses."""
    return float((found.scores_QK >= truth.scores_QK[:, -1:] - 1e-12).mean())


def seconds(search: Callable[[FloatArray], Hits], queries: FloatArray) -> float:
    """Wall time of one search, in seconds."""
    start = time.perf_counter()
    search(queries)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
