"""A real Serve that changes under steady load: scale 1 -> 3 -> 1, kill a replica, swap an index, roll back.

No request fails through the client; the raw count without retries is printed. In the split topology: the same JSON as
fused, and a killed shard that is said in the answers until it is back; so for the re-ranking deployment.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve

from tests.chaos.load import Load
from tests.own_ray import own_ray
from tests.serving.imfa_run import imfa_run
from tests.serving.served import make_served_run
from zscmr_ray.client import Client
from zscmr_ray.config import Config
from zscmr_ray.recipes import vary
from zscmr_ray.serving.app import APP_NAME, deploy, open_service, running
from zscmr_ray.serving.front import free_ports
from zscmr_ray.serving.releases import publish, rollback
from zscmr_ray.serving.wire import SearchRequest

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(900)]
WORKERS = 4
SETTLE_S = 2.0
WAIT_S = 240.0


@pytest.fixture
def wide_ray() -> Iterator[None]:
    """A Ray for one test with room for all replicas: Serve keeps the port of whoever started it first."""
    with own_ray(num_cpus=8, object_store_bytes=200_000_000):
        yield


def wait_for(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.2)


def num_running(deployment: str) -> int:
    deployments = serve.status().applications[APP_NAME].deployments
    return deployments[deployment].replica_states.get("RUNNING", 0)


def replicas(deployment: str) -> set[str]:
    """The names of a deployment's processes."""
    return {
        found["name"]
        for found in ray.util.list_named_actors(all_namespaces=True)
        if f"{APP_NAME}#{deployment}#" in found["name"]
    }


def kill_replica(deployment: str) -> None:
    """Kill one, and wait until as many run as before."""
    before = replicas(deployment)
    ray.kill(ray.get_actor(min(before), namespace="serve"), no_restart=True)
    wait_for(lambda: len(replicas(deployment) - before) == 1 and num_running(deployment) == len(before))


def widen(config: Config, num_replicas: int) -> None:
    """Serve with so many replicas; those that are there stay."""
    before = replicas("Search")
    deploy(vary(config, recipe="fgan", serve={"num_replicas": num_replicas}))
    wait_for(lambda: num_running("Search") == len(replicas("Search")) == num_replicas)
    assert len(before & replicas("Search")) == min(len(before), num_replicas)


def deployments_counted(url: str) -> list[str]:
    """The deployments of the replicas whose counts /metrics holds, one for each replica."""
    with Client(url, timeout_s=120.0) as client:
        names = set(re.findall(r'replica="([^"]*)"', client._call("GET", "/metrics").text))
    return sorted(name.partition("-")[0] for name in names)


def test_nothing_is_lost_while_the_service_changes(tmp_path: Path, wide_ray: None) -> None:
    config = make_served_run(tmp_path / "run")
    other = make_served_run(tmp_path / "other", num_items=9)

    with running(config) as url:
        load = Load(url)
        seen: list[str] = []

        def change(name: str, made: Callable[[], object]) -> None:
            began_s = time.monotonic()
            made()
            print(f"{name}: {time.monotonic() - began_s:.1f} s, failed so far {len(load.failures)}")

        def live(name: str, made: Callable[[], object]) -> None:
            """Make a change and wait until only its version answers."""
            change(name, made)
            end_s = time.monotonic() + WAIT_S
            while True:
                load.versions.clear()
                time.sleep(SETTLE_S)
                if len(load.versions) == 1 and (not seen or next(iter(load.versions)) != seen[-1]):
                    break
                assert time.monotonic() < end_s, load.versions
            seen.append(next(iter(load.versions)))

        load.begin(WORKERS)
        try:
            live("start", lambda: None)
            change("1 -> 3", lambda: widen(config, 3))
            wait_for(lambda: deployments_counted(url) == ["Search"] * 3)
            change("kill", lambda: kill_replica("Search"))
            live("swap", lambda: publish(config, source=other))
            live("roll back", lambda: rollback(config))
            assert seen[0] == seen[2] != seen[1]
            change("3 -> 1", lambda: widen(config, 1))
            time.sleep(SETTLE_S)
        finally:
            load.end(WORKERS)
    print(f"{load.num_done} requests: failed {len(load.failures)}, asked again {load.num_retries}")
    assert load.failures == []


def test_replicas_come_with_the_requests_and_go_with_them(tmp_path: Path, wide_ray: None) -> None:
    config = make_served_run(
        tmp_path / "run", max_replicas=3, target_ongoing_requests=0.5, downscale_delay_s=5.0
    )
    with running(config) as url:
        load = Load(url)
        assert num_running("Search") == 1
        load.begin(2 * WORKERS)
        try:
            wait_for(lambda: num_running("Search") == 3)
        finally:
            load.end(2 * WORKERS)
        wait_for(lambda: num_running("Search") == 1)
    print(f"{load.num_done} requests: failed {len(load.failures)}, asked again {load.num_retries}")
    assert load.failures == []


def in_process(config: Config, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of the fused service in this process, without its times."""
    service = open_service(config)
    answer = asyncio.run(service.search(SearchRequest.model_validate(body))).model_dump(mode="json")
    service.close()
    del answer["timings_ms"]
    return answer


def over_http(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = client._call("POST", "/v1/search", json=body).json()
    del answer["timings_ms"]
    return answer


def test_the_split_topology_answers_alike_and_says_when_a_shard_is_gone(
    tmp_path: Path, wide_ray: None
) -> None:
    config = make_served_run(tmp_path / "run", topology="split", num_shards=2, shard_timeout_ms=5000)
    body = {"query": {"text": "caption 1 of item 4"}, "target": "text", "k": 5, "deadline_ms": 60_000}
    with running(config) as url, Client(url, timeout_s=120.0) as client:
        wait_for(lambda: over_http(client, body)["coverage"] == 1.0)
        assert over_http(client, body) == in_process(config, body)
        wait_for(lambda: deployments_counted(url) == ["Encoders", "Search", "Shard0", "Shard1"])
        killed = replicas("Shard1")
        ray.kill(ray.get_actor(killed.pop(), namespace="serve"), no_restart=True)
        degraded = over_http(client, body)
        print("without a shard:", degraded["coverage"], degraded["degraded"])
        if degraded["coverage"] < 1.0:
            assert degraded["degraded"][0].startswith("shard 1 of 2")
        wait_for(lambda: over_http(client, body)["coverage"] == 1.0)


def test_the_reranking_deployment_answers_alike_and_the_first_stage_stands_in_for_it(
    tmp_path: Path, wide_ray: None
) -> None:
    config = vary(imfa_run(tmp_path), recipe="fgan", serve={"port": free_ports(1)[0]})
    body = {"query": {"text": "a picture of kind b"}, "rerank": True, "k": 5, "deadline_ms": 60_000}
    plain = in_process(config, body | {"rerank": False})
    with running(config) as url, Client(url, timeout_s=120.0) as client:
        wait_for(lambda: over_http(client, body)["degraded"] == [])
        found, expected = over_http(client, body), in_process(config, body)
        assert found["reranked"] == expected["reranked"] > 0
        assert found["results"] == expected["results"] != plain["results"]
        ray.kill(ray.get_actor(replicas("Rerank").pop(), namespace="serve"), no_restart=True)
        without = over_http(client, body)
        print("without a reranker:", without["degraded"])
        if without["degraded"]:
            assert without["degraded"][0].startswith("rerank: ")
            assert without["results"] == plain["results"] and without["reranked"] == 0
        wait_for(lambda: over_http(client, body)["degraded"] == [])
