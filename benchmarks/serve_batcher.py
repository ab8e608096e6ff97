"""32 concurrent text queries: in process against one at a time, and over HTTP against what HTTP allows at all.

Value: rate of 32 concurrent / rate of one at a time, in process (bar 4). Over HTTP: at least 0.7 of the smaller of that rate
and of the rate of a no-op application on the same Serve, same proxy, same client. Every text is new.
"""

from __future__ import annotations

import asyncio
import functools
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from zscmr_ray.cli.session import prepare_environment

prepare_environment()
# Ray gives a process as many threads as the CPUs it reserves, one for a replica: what runs in this process has no more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from contract import report  # noqa: E402
from fastapi import FastAPI, Request  # noqa: E402
from ray import serve  # noqa: E402
from serving_load import (  # noqa: E402
    closed_load,
    gathered,
    load_average,
    request_head,
    served,
    text_request,
)
from serving_run import make_run, texts  # noqa: E402

from zscmr_ray.config import Config  # noqa: E402
from zscmr_ray.serving.app import open_service  # noqa: E402
from zscmr_ray.serving.wire import SearchRequest  # noqa: E402

NUM_ROWS = int(os.environ.get("ZSCMR_BENCH_ROWS", "20000"))
ROUNDS = int(os.environ.get("ZSCMR_BENCH_ROUNDS", "5"))
CONCURRENT = 32
SINGLE, BATCHED, OVER_HTTP = 100, 640, 640
BAR_IN_PROCESS, BAR_HTTP = 4.0, 0.7


def main() -> None:
    with TemporaryDirectory(prefix="zscmr-bench-") as folder:
        config = make_run(Path(folder), num_rows=NUM_ROWS, max_queue_ms=60_000, default_deadline_ms=60_000)
        torch.set_num_threads(config.serve.encoder_threads)
        single, batched = in_process(config)
        http, noop = over_http(config)
    value, share = batched / single, http / min(batched, noop)
    report(
        name="serve_batcher",
        value=value,
        bar=BAR_IN_PROCESS,
        holds=value >= BAR_IN_PROCESS and share >= BAR_HTTP,
        unit="queries/s of 32 concurrent / queries/s one at a time, in process",
        detail={
            "single_per_s": round(single, 1),
            "concurrent_per_s": round(batched, 1),
            "http_per_s": round(http, 1),
            "noop_http_per_s": round(noop, 1),
            "http_share": round(share, 3),
            "bar_http_share": BAR_HTTP,
            "num_rows": NUM_ROWS,
            "load_average": round(load_average(), 1),
        },
    )


def in_process(config: Config) -> tuple[float, float]:
    """Queries/s one at a time and 32 at a time: the best round of each, taken in turns."""
    service = open_service(config)
    found = iter(texts((SINGLE + BATCHED) * (ROUNDS + 1)))

    def calls(count: int) -> list[Any]:
        requests = [
            SearchRequest.model_validate({"query": {"text": next(found)}, "target": "text", "k": 10})
            for _ in range(count)
        ]
        return [functools.partial(service.search, request) for request in requests]

    single: list[float] = []
    batched: list[float] = []

    async def rounds() -> None:
        for _ in range(ROUNDS + 1):
            single.append(SINGLE / await gathered(calls(SINGLE), concurrency=1))
            batched.append(BATCHED / await gathered(calls(BATCHED), concurrency=CONCURRENT))
            print(f"in process: {single[-1]:.0f}/s one at a time, {batched[-1]:.0f}/s of 32", flush=True)

    asyncio.run(rounds())
    service.close()
    return max(single[1:]), max(batched[1:])


def over_http(config: Config) -> tuple[float, float]:
    """Queries/s of 32 connections to the service and to a no-op beside it: the best round of each, in turns."""
    app = FastAPI()

    @app.post("/noop")
    async def noop(request: Request) -> dict[str, str]:
        await request.body()
        return {"status": "ok"}

    ours: list[float] = []
    nothing: list[float] = []
    found = iter(texts(OVER_HTTP * (ROUNDS + 1), seed=1))
    with served(config) as url:
        deployment = serve.deployment(serve.ingress(app)(type("Noop", (), {})), max_ongoing_requests=256)
        serve.run(deployment.bind(), name="noop", route_prefix="/noop-app", logging_config=_QUIET)
        for _ in range(ROUNDS + 1):
            requests = [text_request(url, next(found)) for _ in range(OVER_HTTP)]
            answers, seconds = asyncio.run(closed_load(url, requests, concurrency=CONCURRENT))
            assert all(answer.status == 200 for answer in answers), {a.status for a in answers}
            ours.append(OVER_HTTP / seconds)
            same = [
                (request_head(url, "/noop-app/noop", "application/json", len(body)), body)
                for _, body in requests
            ]
            answers, seconds = asyncio.run(closed_load(url, same, concurrency=CONCURRENT))
            assert all(answer.status == 200 for answer in answers), {a.status for a in answers}
            nothing.append(OVER_HTTP / seconds)
            print(f"over HTTP: {ours[-1]:.0f}/s, a no-op {nothing[-1]:.0f}/s", flush=True)
        serve.delete("noop")
    return max(ours[1:]), max(nothing[1:])


_QUIET = {"log_level": "WARNING", "enable_access_log": False}

if __name__ == "__main__":
    main()
