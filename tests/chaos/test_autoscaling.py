"""Autoscaling without a cloud: Ray's own autoscaler over its fake node provider, whose nodes are raylets on this machine.

Nodes of one logical CPU come for work that waits and go when they are idle: for an embedding, for a training of two
workers, and for Serve's replicas under load. What is claimed are events and times, not throughput.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.load import Load
from tests.chaos.tables import note_row
from tests.pairs_run import write_pairs
from tests.ray_nodes import START_LIMIT_S, Cluster, cluster
from tests.serving.served import make_served_run
from tests.stages.corpus import corpus_config, good_samples, write_tar
from tests.stages.small_run import write_checkpoint
from tests.stages.train_process import long_config
from zscmr_ray.config import Config
from zscmr_ray.manifest import MANIFEST
from zscmr_ray.recipes import vary
from zscmr_ray.serving.front import free_ports
from zscmr_ray.stages import stage_store

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(1800)]

PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
MAX_NODES = 3
IDLE_MINUTES = 0.2
# On a machine with other work Ray's own processes take their time to start; nothing is claimed of it.
LIMIT_S = 900


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cluster]:
    """A head that runs no work, and up to three nodes of a CPU when work waits."""
    with cluster(num_nodes=0) as found:
        file = found.folder / "0"
        file.mkdir()
        # The head's port is chosen when it starts, and the provider must know it before.
        (found.port,) = free_ports(1)
        config = cloud_config(found.address)
        (file / "cloud.json").write_text(json.dumps(config))
        found.start_head(
            f"--autoscaling-config={file / 'cloud.json'}",
            num_cpus=0,
            extra={"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
            port=found.port,
        )
        yield found


def cloud_config(address: str) -> dict[str, object]:
    """What `ray up` would be given: one group of nodes, 0 to 3."""
    node = {"CPU": 1, "object_store_memory": 100_000_000}
    return {
        "cluster_name": "fake", "max_workers": MAX_NODES, "idle_timeout_minutes": IDLE_MINUTES,
        "provider": {
            "type": "external", "module": PROVIDER, "gcs_address": address, "use_node_id_as_ip": True,
            "disable_node_updaters": True, "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": node, "node_config": {}, "min_workers": 0, "max_workers": MAX_NODES},
        },
        "head_node_type": "ray.head.default", "upscaling_speed": 1.0, "auth": {}, "file_mounts": {},
        "cluster_synced_files": [], "file_mounts_sync_continuously": False, "initialization_commands": [],
        "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
        "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip


WATCH = """
import sys, time, ray
ray.init(sys.argv[1], logging_level="error", log_to_driver=False)
began, before = time.monotonic(), None
while True:
    count = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    if count != before:
        print(f"{time.monotonic() - began:.1f} {count}", flush=True)
        before = count
    time.sleep(0.2)
"""


class Watch:
    """The number of nodes with CPUs as time goes, seen by a driver of its own; `events` are (seconds, nodes)."""

    def __init__(self, on: Cluster) -> None:
        self.events: list[tuple[float, int]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", WATCH, on.address], env=on.environment, stdout=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.wait_for(lambda: bool(self.events), START_LIMIT_S)
        self.since_s = time.monotonic() - self.events[0][0]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            at_s, count = line.split()
            self.events.append((float(at_s), int(count)))

    @property
    def num_nodes(self) -> int:
        return self.events[-1][1]

    def now_s(self) -> float:
        return time.monotonic() - self.since_s

    def wait_for(self, condition: Callable[[], bool], limit_s: float = LIMIT_S) -> float:
        deadline_s = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline_s, self.events
            time.sleep(0.1)
        return self.now_s() if self.events and hasattr(self, "since_s") else 0.0

    def after(self, at_s: float) -> str:
        """Events since a moment, as the table says them: `3 s: 1, 4 s: 2`."""
        return ", ".join(f"{seen_s - at_s:.0f} s: {count}" for seen_s, count in self.events if seen_s > at_s)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def watch(cloud: Cluster) -> Iterator[Watch]:
    found = Watch(cloud)
    found.wait_for(lambda: found.num_nodes == 0)
    yield found
    found.end()


def embedding(folder: Path) -> Config:
    for number in range(6):
        write_tar(folder / f"shards/{number}.tar", good_samples(number, 40))
    config = corpus_config(folder, embed={"source": "shards", "num_encoders": 3, "steps": "apart"})
    write_checkpoint(config)
    return config


def training(folder: Path) -> Config:
    config = long_config(folder / "run", 25)
    write_pairs(config)
    return vary(config, recipe="fgan", train={"num_workers": 2, "checkpoint_every_steps": 20})


@pytest.mark.parametrize(("stage", "prepare"), [("embed", embedding), ("train", training)])
def test_work_that_waits_brings_nodes_and_idle_ones_go(
    cloud: Cluster, watch: Watch, tmp_path: Path, stage: str, prepare: Callable[[Path], Config]
) -> None:
    config = vary(prepare(tmp_path), recipe="fgan", ray={"autoscales": True})
    began_s = watch.now_s()
    driver = cloud.drive(stage, config, log=tmp_path / "log")
    watch.wait_for(lambda: watch.num_nodes > 0 or driver.poll() is not None)
    assert driver.wait(LIMIT_S) == 0, (tmp_path / "log").read_text()[-4000:]
    ended_s = watch.now_s()
    assert stage_store(config, stage).exists(MANIFEST)
    most = max(count for seen_s, count in watch.events if seen_s > began_s)
    assert 2 <= most <= MAX_NODES
    watch.wait_for(lambda: watch.num_nodes == 0)
    said = f"its command ended after {ended_s - began_s:.0f} s"
    note_row("autoscaling", [stage, f"0 -> {most} -> 0", watch.after(began_s), said])


def test_replicas_bring_nodes_and_no_request_fails(cloud: Cluster, watch: Watch, tmp_path: Path) -> None:
    """One replica a node: load makes them three, and when it ends they are one again."""
    config = make_served_run(
        tmp_path, num_replicas=1, max_replicas=3, target_ongoing_requests=1.0, downscale_delay_s=10.0
    )
    began_s = watch.now_s()
    driver = cloud.drive("serve", config, log=tmp_path / "log")
    load = Load(f"http://127.0.0.1:{config.serve.port}")
    try:
        watch.wait_for(lambda: load.is_ready() or driver.poll() is not None)
        assert driver.poll() is None, (tmp_path / "log").read_text()[-4000:]
        load.begin(12)
        watch.wait_for(lambda: watch.num_nodes == 3)
        loaded_s = watch.now_s()
        time.sleep(10)
        load.end(11)
        watch.wait_for(lambda: watch.num_nodes == 1)
    finally:
        load.end(12)
        driver.terminate()
        driver.wait(LIMIT_S)
    assert load.failures == [] and load.num_done > 0
    said = f"3 replicas after {loaded_s - began_s:.0f} s; {load.num_done:,} requests, 0 failed"
    watch.wait_for(lambda: watch.num_nodes == 0)
    note_row("autoscaling", ["serve", "0 -> 1 -> 3 -> 1 -> 0", watch.after(began_s), said])
