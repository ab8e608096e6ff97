"""Under steady load on a real Serve: scale 1 -> 3 -> 1, kill a replica, swap an index, roll back: no request fails.

And in the split topology: the same JSON as fused, and a killed shard that is said in the answers until it is back. The raw
count without retries is printed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray import serve

from tests.serving.served import make_served_run
from zscmr_ray.client import AsyncClient, Client
from zscmr_ray.config import Config
from zscmr_ray.recipes import vary
from zscmr_ray.serving.app import APP_NAME, build_app, open_service, running
from zscmr_ray.serving.releases import publish, rollback

pytestmark = [pytest.mark.long, pytest.mark.ray]
WORKERS = 4
SETTLE_S = 2.0
WAIT_S = 240.0


class Load:
    """Requests one after another from several clients until it is stopped; counts versions and failures."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.versions: Counter[str] = Counter()
        self.failures: list[str] = []
        self.num_retries = 0
        self._ended = asyncio.Event()

    async def run(self) -> None:
        await asyncio.gather(*(self._work(number) for number in range(WORKERS)))

    def stop(self) -> None:
        self._ended.set()

    async def _work(self, worker: int) -> None:
        async with AsyncClient(self._url, seed=worker, timeout_s=120.0) as client:
            number = 0
            while not self._ended.is_set():
                number += 1
                try:
                    text = f"caption {number % 2} of item {number % 6} {worker}"
                    answer = await client.search(text=text, target="text", k=2, deadline_ms=60_000)
                    self.versions[answer.index_version] += 1
                    assert answer.results and answer.coverage == 1.0
                except Exception as error:
                    self.failures.append(repr(error))
                await asyncio.sleep(0.02)
            self.num_retries += client.num_retries


def wait_for(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.2)


def running_replicas() -> int:
    deployments = serve.status().applications[APP_NAME].deployments
    return deployments["Search"].replica_states.get("RUNNING", 0)


def kill_replica(deployment: str) -> None:
    names = [
        found["name"]
        for found in ray.util.list_named_actors(all_namespaces=True)
        if f"{APP_NAME}#{deployment}#" in found["name"]
    ]
    ray.kill(ray.get_actor(sorted(names)[0], namespace="serve"), no_restart=True)


def widen(config: Config, num_replicas: int) -> None:
    wider = vary(config, recipe="fgan", serve={"num_replicas": num_replicas})
    serve.run(build_app(wider), name=APP_NAME, route_prefix="/")
    wait_for(lambda: running_replicas() == num_replicas)


def test_nothing_is_lost_while_the_service_changes(tmp_path: Path, ray_local: None) -> None:
    config = make_served_run(tmp_path / "run")
    other = make_served_run(tmp_path / "other", num_items=9)

    async def scenario(url: str) -> Load:
        load = Load(url)
        task = asyncio.create_task(load.run())
        seen: list[str] = []

        async def live(change: Callable[[], object]) -> None:
            """Make a change and wait until only its version answers."""
            await asyncio.to_thread(change)
            end_s = time.monotonic() + WAIT_S
            while True:
                load.versions.clear()
                await asyncio.sleep(SETTLE_S)
                if len(load.versions) == 1 and (not seen or next(iter(load.versions)) != seen[-1]):
                    break
                assert time.monotonic() < end_s, load.versions
            seen.append(next(iter(load.versions)))

        await live(lambda: None)
        await asyncio.to_thread(widen, config, 3)
        await asyncio.to_thread(kill_replica, "Search")
        await asyncio.sleep(SETTLE_S)
        await asyncio.to_thread(wait_for, lambda: running_replicas() == 3)
        await live(lambda: publish(config, source=other))
        await live(lambda: rollback(config))
        assert seen[0] == seen[2] != seen[1]
        await asyncio.to_thread(widen, config, 1)
        await asyncio.sleep(SETTLE_S)
        load.stop()
        await task
        return load

    with running(config) as url:
        load = asyncio.run(scenario(url))
        with Client(url) as client:
            page = client._call("GET", "/metrics").text
    print(f"failed {len(load.failures)}, asked again {load.num_retries}")
    assert load.failures == []
    assert "zscmr_index_live" in page and "zscmr_stage_seconds_bucket" in page


def test_the_split_topology_answers_alike_and_says_when_a_shard_is_gone(
    tmp_path: Path, ray_local: None
) -> None:
    config = make_served_run(tmp_path / "run", topology="split", num_shards=2, shard_timeout_ms=1500)
    fused = open_service(config)
    with running(config) as url, Client(url, timeout_s=120.0) as client:
        question = {"text": "caption 1 of item 4", "target": "text", "k": 5, "deadline_ms": 60_000}

        def whole() -> bool:
            return client.search(**question).coverage == 1.0  # type: ignore[arg-type]

        wait_for(whole)
        over_http = client._call(
            "POST",
            "/v1/search",
            json={"query": {"text": question["text"]}, "target": "text", "k": 5, "deadline_ms": 60_000},
        ).json()
        from zscmr_ray.serving.wire import Query, SearchRequest

        request = SearchRequest(query=Query(text=str(question["text"])), target="text", k=5)
        local = asyncio.run(fused.search(request)).model_dump(mode="json")
        for answer in (over_http, local):
            del answer["timings_ms"]
        assert over_http == local
        kill_replica("Shard1")
        degraded = client.search(**question)  # type: ignore[arg-type]
        if degraded.coverage < 1.0:
            assert degraded.degraded[0].startswith("shard 1 of 2")
        wait_for(whole)
    fused.close()
