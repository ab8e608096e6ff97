"""Evaluating 20,000 queries on 20,000 gallery rows at 512-d against the bare blocked product and sort of the same size.

Ours is one condition of the report, both directions: mAP@all, mAP@R, P@R, the precision-recall curve, every class's mean,
chance, and the 95% interval of 1,000 class-then-query resamples. The baseline is numpy's product in the same blocks and
numpy's sort of each row of scores in place, nothing else: it could not even say which row is right. Both take turns. The
products of both, and our ranking, use every CPU, numpy's sort one: `cpu_cost` beside `cost` is the ratio of CPU time. The
bar is for 50 classes; with 5 a fifth of the gallery is right for each query, which costs more and stands in detail.

Memory is the peak of a fresh process that holds 100,000 x 100,000 rows at 512-d and evaluates both directions for some of
the queries (`MEMORY_QUERIES` items; `evaluate_scale.py peak 100000` asks with all): blocks of scores have a fixed number
of cells, so that the others would add their copied vectors (205 MB) and a few numbers each.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from contract import report

from zscmr_ray.machine import peak_rss_bytes
from zscmr_ray.retrieval.ordering import query_blocks
from zscmr_ray.retrieval.protocol import ClassGroups, condition_numbers
from zscmr_ray.retrieval.searches import DIRECTIONS, Corpus, Towers

SEED, DIMENSION, NUM_ROWS, ROUNDS = 0, 512, 20_000, 3
NUM_CLASSES, FEW_CLASSES = 50, 5
MEMORY_ROWS, MEMORY_QUERIES = 100_000, 2_000
BAR_COST, BAR_MEMORY_GB = 1.5, 4.0

FloatArray = npt.NDArray[np.float32]


def main() -> None:
    """Measure memory in a fresh process, then the cost at both numbers of classes, and report."""
    memory = peak(MEMORY_QUERIES)
    many, few = measure(NUM_CLASSES, rounds=ROUNDS), measure(FEW_CLASSES, rounds=1)
    ratio = many["bare_s"] / many["ours_s"]
    holds = ratio >= 1 / BAR_COST and memory["peak_gb"] <= BAR_MEMORY_GB
    report(
        name="evaluate_scale",
        value=ratio,
        bar=1 / BAR_COST,
        holds=holds,
        unit=f"time of product and sort / time of the evaluation, 20,000 x 20,000 at 512-d, {NUM_CLASSES} classes",
        detail={
            f"{NUM_CLASSES}_classes": rounded(many | costs(many)),
            f"{FEW_CLASSES}_classes": rounded(few | costs(few)),
            "bar_cost": BAR_COST,
            f"memory_{MEMORY_ROWS}x{MEMORY_ROWS}": rounded(memory) | {"bar_gb": BAR_MEMORY_GB},
            "rounds": ROUNDS,
        },
        seed=SEED,
    )


def make_corpus(num_rows: int, num_classes: int) -> tuple[Corpus, Towers, ClassGroups]:
    """Test and train items of unseen classes, as many of each, one caption an item; noisy vectors of their class."""
    rng = np.random.default_rng(SEED)
    codes = np.tile(rng.integers(0, num_classes, num_rows), 2)
    centres_CD = rng.standard_normal((num_classes, DIMENSION), dtype=np.float32)
    sides = []
    for _ in range(2):
        side_ND = rng.standard_normal((2 * num_rows, DIMENSION), dtype=np.float32)
        side_ND += np.float32(0.2) * centres_CD[codes]
        side_ND /= np.linalg.norm(side_ND, axis=1, keepdims=True)
        sides.append(side_ND)
    names = tuple(f"class-{number}" for number in range(num_classes))
    corpus = Corpus(
        ids=[f"item-{row}" for row in range(2 * num_rows)],
        labels=[(names[code],) for code in codes.tolist()],
        partition_N=np.repeat(["test", "train"], num_rows),
        text_item_M=np.arange(2 * num_rows),
    )
    return corpus, Towers.symmetric(*sides), ClassGroups((), names)


def evaluate(corpus: Corpus, towers: Towers, groups: ClassGroups, *, num_queries: int) -> dict[str, float]:
    """Evaluate one condition, both directions, and return the seconds, CPU-seconds and the average mAP."""
    start, start_cpu = time.perf_counter(), time.process_time()
    numbers, _ = condition_numbers(
        towers,
        corpus,
        groups,
        query_items=np.flatnonzero(corpus.partition_N == "test")[:num_queries],
        gallery_items=np.flatnonzero(corpus.partition_N == "train"),
        seed=SEED,
    )
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
        "map": numbers["average"]["map"],
    }


def bare(towers: Towers, num_rows: int) -> tuple[float, float]:
    """Do the same directions' products and sorts and nothing else; return the seconds and the CPU-seconds."""
    start, start_cpu = time.perf_counter(), time.process_time()
    sides = {
        "image_to_text": (towers.image_query_ND, towers.text_gallery_MD),
        "text_to_image": (towers.text_query_MD, towers.image_gallery_ND),
    }
    for direction in DIRECTIONS:
        query_QD, gallery_ND = sides[direction][0][:num_rows], sides[direction][1][num_rows:]
        for first, last in query_blocks(num_rows, num_rows):
            similarity_BN = query_QD[first:last] @ gallery_ND.T
            similarity_BN.sort(axis=1)
    return time.perf_counter() - start, time.process_time() - start_cpu


def measure(num_classes: int, *, rounds: int) -> dict[str, float]:
    """Median seconds of both over alternating rounds, after a small warm-up."""
    corpus, towers, groups = make_corpus(NUM_ROWS, num_classes)
    small = make_corpus(1000, num_classes)
    evaluate(*small, num_queries=1000)
    bare(small[1], 1000)
    times: dict[str, list[float]] = {"bare_s": [], "bare_cpu_s": [], "ours_s": [], "ours_cpu_s": []}
    score = 0.0
    for _ in range(rounds):
        seconds, cpu_seconds = bare(towers, NUM_ROWS)
        times["bare_s"].append(seconds)
        times["bare_cpu_s"].append(cpu_seconds)
        found = evaluate(corpus, towers, groups, num_queries=NUM_ROWS)
        times["ours_s"].append(found["seconds"])
        times["ours_cpu_s"].append(found["cpu_seconds"])
        score = found["map"]
    return {name: statistics.median(values) for name, values in times.items()} | {"map": score}


def peak(num_queries: int) -> dict[str, float]:
    """Run the large case in a fresh process and return its peak in GB and its seconds."""
    command = [sys.executable, str(Path(__file__).resolve()), "peak", str(num_queries)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout
    gigabytes, seconds = (float(word) for word in output.split()[-2:])
    return {"peak_gb": gigabytes, "seconds": seconds, "query_items": float(num_queries)}


def run_and_print_peak(num_queries: int) -> None:
    """Be that fresh process."""
    case = make_corpus(MEMORY_ROWS, NUM_CLASSES)
    found = evaluate(*case, num_queries=num_queries)
    print(peak_rss_bytes() / 1e9, found["seconds"])


def costs(found: dict[str, float]) -> dict[str, float]:
    """What the evaluation costs of product and sort, in time and in CPU time."""
    return {
        "cost": found["ours_s"] / found["bare_s"],
        "cpu_cost": found["ours_cpu_s"] / found["bare_cpu_s"],
    }


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Round for reading."""
    return {name: round(value, 3) for name, value in values.items()}


if __name__ == "__main__":
    run_and_print_peak(int(sys.argv[2])) if sys.argv[1:2] == ["peak"] else main()
