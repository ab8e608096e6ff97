"""A text query over HTTP, one at a time, against the same encode and search called in process.

Value: (bare p50 + 10 ms) / HTTP p50; at least 1: HTTP, Serve, parsing and JSON together cost at most 10 ms. Bare and HTTP
take turns in blocks, so that a slow spell of the machine hits both. Every text is new. Both run on one thread, as replicas.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from zscmr_ray.cli.session import prepare_environment

prepare_environment()
# Ray gives a process as many threads as the CPUs it reserves, one for a replica: what runs in this process has no more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from contract import report  # noqa: E402
from serving_load import (  # noqa: E402
    closed_load,
    load_average,
    percentile_ms,
    served,
    text_request,
)
from serving_run import make_run, texts  # noqa: E402

from zscmr_ray.config import Config  # noqa: E402
from zscmr_ray.engine.vector_model import find_model  # noqa: E402
from zscmr_ray.retrieval.scoring import weigh_query  # noqa: E402
from zscmr_ray.serving.encoder import ModelEncoder  # noqa: E402
from zscmr_ray.serving.searcher import Searcher, SearchTask  # noqa: E402
from zscmr_ray.stages import stage_store  # noqa: E402

NUM_ROWS = int(os.environ.get("ZSCMR_BENCH_ROWS", "20000"))
BLOCKS = int(os.environ.get("ZSCMR_BENCH_BLOCKS", "10"))
BLOCK = 50
ALLOWED_MS = 10.0


def main() -> None:
    with TemporaryDirectory(prefix="zscmr-bench-") as folder:
        config = make_run(Path(folder), num_rows=NUM_ROWS)
        bare_ms, http_ms = measure(config)
    bare, http = (float(np.percentile(values, 50)) for values in (bare_ms, http_ms))
    value = (bare + ALLOWED_MS) / http
    report(
        name="serve_latency",
        value=value,
        bar=1.0,
        holds=value >= 1.0,
        unit="(bare p50 + 10 ms) / HTTP p50",
        detail={
            "num_rows": NUM_ROWS,
            "bare_p50_ms": round(bare, 3),
            "http_p50_ms": round(http, 3),
            "http_p95_ms": round(float(np.percentile(http_ms, 95)), 3),
            "over_bare_ms": round(http - bare, 3),
            "queries": len(http_ms),
            "load_average": round(load_average(), 1),
        },
    )


def measure(config: Config) -> tuple[list[float], list[float]]:
    """Milliseconds of bare and of HTTP queries."""
    torch.set_num_threads(config.serve.encoder_threads)
    encoder = ModelEncoder(find_model("checkpoint", own=stage_store(config, "train")), max_pixels=1_000_000)
    searcher = Searcher(stage_store(config, "index"))
    found = texts(2 * BLOCK * (BLOCKS + 1))
    bare_ms: list[float] = []
    http_ms: list[float] = []
    with served(config) as url:
        for number in range(BLOCKS + 1):
            block = found[2 * number * BLOCK : 2 * (number + 1) * BLOCK]
            bare = [bare_query_ms(encoder, searcher, text) for text in block[:BLOCK]]
            requests = [text_request(url, text) for text in block[BLOCK:]]
            answers, _ = asyncio.run(closed_load(url, requests, concurrency=1))
            assert all(answer.status == 200 for answer in answers), answers
            # The first block warms both.
            if number:
                bare_ms += bare
                http_ms += [answer.seconds * 1000 for answer in answers]
                print(
                    f"{np.median(bare):.2f} ms bare, {percentile_ms(answers, 50):.2f} ms over HTTP",
                    flush=True,
                )
    return bare_ms, http_ms


def bare_query_ms(encoder: ModelEncoder, searcher: Searcher, text: str) -> float:
    """One query as a caller of the library would make it."""
    began_s = time.perf_counter()
    vector_1D = encoder.encode_texts([encoder.clean(text)])
    query_1D = weigh_query(vector_1D, searcher.blocks, label_weight=encoder.label_weight)
    searcher.search([SearchTask(query_1D[0], "text", 10)])
    return (time.perf_counter() - began_s) * 1000


if __name__ == "__main__":
    main()
