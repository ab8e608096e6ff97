"""What a cluster loses under a service that is being searched: no search fails, and two replicas are there again.

The nodes of test_cluster_faults.py: a head that runs no replica, and one replica on each of two nodes. Replaced indexes,
widths and `ray.kill` of a replica are test_serving_changes.py's.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS, WORDS
from tests.chaos.load import Load
from tests.chaos.network import network_namespace
from tests.chaos.tables import note_row
from tests.ray_nodes import Cluster, Node, cluster
from tests.s3_server import S3Server, server_with
from tests.serving.served import make_served_run
from zscmr_ray.config import Config

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(1500)]

NUM_REPLICAS = 2
CLIENTS = 3
# Beside other work on the machine everything takes longer; nothing here depends on it.
LIMIT_S = 600


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with server_with("served") as running:
        yield running


@dataclass
class Service:
    """`zscmr serve` on a cluster; what a test has killed is there again for the next."""

    on: Cluster
    config: Config
    log: Path
    driver: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.config.serve.port}"

    def replicas(self) -> list[int]:
        return [pid for node in self.on.nodes for pid in node.pids("ray::ServeReplica")]

    def begin(self) -> None:
        if self.driver is None or self.driver.poll() is not None:
            self.driver = self.on.drive("serve", self.config, log=self.log)
        self.wait_for(lambda: self.is_whole() and Load(self.url).is_ready())

    def is_whole(self) -> bool:
        return len(self.replicas()) == NUM_REPLICAS

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline_s, self.log.read_text()[-4000:]
            time.sleep(0.2)

    def end(self) -> None:
        if self.driver is not None:
            Node(self.driver, self.log).kill()


@pytest.fixture(scope="module")
def service(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    config = make_served_run("s3://served/run", num_replicas=NUM_REPLICAS)
    with cluster(num_nodes=0) as nodes:
        found = Service(nodes, config, tmp_path_factory.mktemp("service") / "log")
        yield found
        found.end()


def survive(service: Service, fault: str, do: Callable[[contextlib.ExitStack], object]) -> None:
    """Search, do the fault, search on until the service is whole again, and count what failed."""
    assert service.driver is not None
    load = Load(service.url)
    load.begin(CLIENTS)
    try:
        service.wait_for(lambda: load.num_done > 50)
        load.longest_s = 0.0
        before, since_s = set(service.replicas()), time.monotonic()
        with contextlib.ExitStack() as stack:
            do(stack)
            service.wait_for(lambda: load.num_done > 50)
            if loses_one := fault in {"worker", "raylet", "cut"}:
                service.wait_for(lambda: bool(set(service.replicas()) - before))
            else:
                assert set(service.replicas()) == before
            service.wait_for(service.is_whole)
            whole_s = time.monotonic() - since_s
            seen = load.num_done
            service.wait_for(lambda: load.num_done > seen + 50)
    finally:
        load.end(CLIENTS)
    assert load.failures == []
    whole = f"{whole_s:.0f} s until two replicas" if loses_one else "the replicas stay"
    said = f"{whole}, longest answer {load.longest_s:.1f} s"
    note_row("chaos", ["serve", WORDS[fault], f"0 of {load.num_done:,} searches failed", said])


@pytest.mark.parametrize("fault", ["worker", "storage", "slow", "raylet", "driver"])
def test_a_fault_fails_no_search(service: Service, server: S3Server, fault: str) -> None:
    service.on.mend(num_nodes=NUM_REPLICAS)
    service.begin()
    node = service.on.nodes[-1]

    def do(stack: contextlib.ExitStack) -> None:
        assert service.driver is not None
        if fault == "storage":
            server.kill()
            time.sleep(3)
            server.start()
            return
        FAULTS[fault](service.on, service.driver, node, stack)
        if fault == "raylet":
            service.on.mend(num_nodes=NUM_REPLICAS)
        elif fault in {"slow", "driver"}:
            # Long enough for Ray and Serve to notice.
            time.sleep(20)

    survive(service, fault, do)


def test_the_same_command_serves_on_a_new_head(service: Service) -> None:
    """Nothing answers without its head; the index is where it was."""
    service.on.mend(num_nodes=NUM_REPLICAS)
    service.begin()
    service.on.head.kill()
    since_s = time.monotonic()
    service.end()
    service.on.mend(num_nodes=NUM_REPLICAS)
    service.begin()
    load = Load(service.url)
    load.begin(CLIENTS)
    service.wait_for(lambda: load.num_done > 50)
    load.end(CLIENTS)
    assert load.failures == []
    said = f"{time.monotonic() - since_s:.0f} s until it answers, same command"
    note_row("chaos", ["serve", WORDS["head"], "every search until it is back", said])


def test_a_replica_that_is_cut_off(server: S3Server, tmp_path: Path) -> None:
    """Its searches are asked again where they are answered; a node that comes takes its replica."""
    config = make_served_run(tmp_path / "run", num_replicas=NUM_REPLICAS)
    with network_namespace() as network, cluster(num_nodes=0, host=network.outside) as found:
        found.start_head(num_cpus=0)
        found.add_node(host=network.outside)
        lost = found.add_node(host=network.inside, within=network.run)
        service = Service(found, config, tmp_path / "log")
        service.begin()

        def do(stack: contextlib.ExitStack) -> None:
            network.cut()
            stack.callback(network.mend)
            found.add_node(host=network.outside)
            found.nodes.remove(lost)
            stack.callback(lost.kill)

        try:
            survive(service, "cut", do)
        finally:
            service.end()
