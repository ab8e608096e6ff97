"""SIGKILL of a training worker, of its driver and of a whole node, for every ZeRO stage: the weights are the same bytes.

One cluster of several nodes on this machine serves all: a head without CPUs and nodes of one CPU each, so that two
workers are on two nodes and speak gloo between them.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pairs_run import write_pairs
from tests.stages.train_process import long_config
from zscmr_ray.config import Config
from zscmr_ray.engine.bare import BareEngine
from zscmr_ray.engine.checkpoint import load_checkpoint
from zscmr_ray.engine.resume import COMPLETE, FOLDER
from zscmr_ray.manifest import MANIFEST, require_manifest
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.train import plan_training, run_train
from zscmr_ray.stages.train_loop import TrainJob, train_worker
from zscmr_ray.storage import Store

pytestmark = [
    pytest.mark.long,
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
STAGES = (0, 1, 2, 3)
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}
INTERVAL = 20
LIMIT_S = 400


@pytest.fixture(scope="module")
def cluster(s3_bucket: str) -> Iterator[Any]:
    """A head and three nodes; this process is a driver on it. Started when the S3 server's variables are set."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    # A short path: the sockets below it must stay under 107 characters.
    with tempfile.TemporaryDirectory(prefix="zk", ignore_cleanup_errors=True) as folder:
        head = NODE | {"num_cpus": 0, "temp_dir": folder}
        found = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(3):
                found.add_node(**NODE)
            ray.init(found.address, log_to_driver=False, logging_level="warning")
            yield found
        finally:
            ray.shutdown()
            found.shutdown()


def train(config: Config) -> Config:
    write_pairs(config)
    run_train(config)
    return config


def checkpoint(config: Config) -> Store:
    return stage_store(config, "train")


def weights(config: Config) -> bytes:
    return checkpoint(config).read_bytes("model.safetensors")


def metrics(store: Store) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read_bytes("metrics.jsonl").splitlines()]


def resumed_step(config: Config) -> int:
    (found,) = [line for line in metrics(checkpoint(config)) if line.get("event") == "resumed"]
    return int(found["step"])


def whole_states(config: Config) -> list[int]:
    """The steps of the states that are whole, oldest first."""
    keys = [info.key for info in checkpoint(config).list(FOLDER)]
    return sorted(int(key.split("/")[1].removeprefix("step-")) for key in keys if key.endswith(COMPLETE))


def wait_for_state(config: Config) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not whole_states(config):
        assert time.monotonic() < deadline_s, "no resumable state was written"
        time.sleep(0.01)


def workers(cluster: Any) -> dict[int, Any]:
    """The training workers by process id, each with its node."""
    raylets = {
        process.process.pid: node for node in cluster.worker_nodes for process in node.all_processes["raylet"]
    }
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        # A process may go between any two of these.
        try:
            command = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ProcessLookupError):
            continue
        if b"RayTrainWorker" in command and parent in raylets:
            found[int(folder.name)] = raylets[parent]
    return found


def kill_worker(cluster: Any, config: Config) -> int:
    wait_for_state(config)
    os.kill(max(workers(cluster)), signal.SIGKILL)
    return max(whole_states(config))


def kill_node(cluster: Any, config: Config) -> int:
    wait_for_state(config)
    found = workers(cluster)
    cluster.remove_node(found[min(found)], allow_graceful=False)
    return max(whole_states(config))


def killed_beside(config: Config, kill: Callable[[], int]) -> int:
    """Train while another thread kills something; returns the newest whole state at that moment."""
    last: list[int] = []
    killer = threading.Thread(target=lambda: last.append(kill()))
    killer.start()
    train(config)
    killer.join()
    return last[0]


def killed_driver(config: Config, address: str) -> int:
    """Train in a process that is killed, then the same here."""
    write_pairs(config)
    command = [sys.executable, "-m", "tests.stages.train_process", config.model_dump_json(), address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        wait_for_state(config)
        driver.kill()
    last = max(whole_states(config))
    assert not checkpoint(config).exists(MANIFEST)
    run_train(config)
    return last


def fill_up(cluster: Any, count: int) -> None:
    """Have so many nodes of a CPU again."""
    while len(cluster.worker_nodes) < count:
        cluster.add_node(**NODE)
    while len(cluster.worker_nodes) > count:
        cluster.remove_node(max(cluster.worker_nodes, key=lambda node: node.node_id), allow_graceful=False)


def config_of(run: object, stage: int, **more: object) -> Config:
    options = {"num_workers": 2, "zero_stage": stage, "checkpoint_every_steps": INTERVAL} | more
    return long_config(run, num_epochs=60, **options)


@pytest.fixture(scope="module")
def undisturbed(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Config]:
    """A whole run of two workers on two nodes, of a ZeRO stage, once."""

    @functools.cache
    def run(stage: int) -> Config:
        return train(config_of(tmp_path_factory.mktemp(f"zero-{stage}"), stage))

    return run


def check_same(config: Config, last: int, whole: Config) -> None:
    """The same bytes and the same logged steps, and at most one interval done again."""
    # Of the newest state or, if another one was being written then, of that.
    assert resumed_step(config) in (last, last + INTERVAL)
    logged = [
        [line["step"] for line in metrics(checkpoint(run)) if "loss/total" in line] for run in (config, whole)
    ]
    assert logged[0] == logged[1]
    assert weights(config) == weights(whole)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("what", ["worker", "driver", "node"])
def test_what_is_killed_goes_on_and_ends_in_the_same_bytes(
    cluster: Any, undisturbed: Callable[[int], Config], tmp_path: Path, what: str, stage: int
) -> None:
    whole, config = undisturbed(stage), config_of(tmp_path, stage)
    match what:
        case "worker":
            last = killed_beside(config, lambda: kill_worker(cluster, config))
        case "node":
            last = killed_beside(config, lambda: kill_node(cluster, config))
        case _:
            last = killed_driver(config, cluster.address)
    fill_up(cluster, 3)
    check_same(config, last, whole)


def test_a_run_on_s3_goes_on_too(cluster: Any, undisturbed: Callable[[int], Config], s3_bucket: str) -> None:
    config = config_of(f"{s3_bucket}/killed", 2)
    last = killed_beside(config, lambda: kill_worker(cluster, config))
    check_same(config, last, undisturbed(2))


@pytest.mark.parametrize("stage", STAGES)
def test_two_nodes_train_what_one_process_trains(
    undisturbed: Callable[[int], Config], tmp_path: Path, stage: int
) -> None:
    """Within 1e-4 over 50 steps, of the bare torch loop."""
    config, bare = undisturbed(stage), Store(tmp_path)
    pairs = stage_store(config, "preprocess")
    manifest = require_manifest(pairs, "preprocess")
    parts = tuple(part.name for part in manifest.parts)
    split, _ = plan_training(config, pairs, parts)
    train_worker(
        TrainJob(config, split, pairs, parts, manifest.info, bare),
        make_engine=lambda step, total_steps: BareEngine(step, optim=config.optim, total_steps=total_steps),
    )
    losses = [[line["loss/total"] for line in metrics(store) if "loss/total" in line][:5]
              for store in (checkpoint(config), bare)]  # fmt: skip
    assert len(losses[0]) == 5
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_an_elastic_training_that_loses_a_node_goes_on_with_fewer(
    cluster: Any, tmp_path: Path, stage: int
) -> None:
    """One worker goes on with the state of two, and ends within 1e-4 of two that nothing happened to."""
    fill_up(cluster, 2)
    # Small steps: over hundreds of them another order of sums must not grow.
    optim = long_config(tmp_path).optim.model_copy(update={"lr": 1e-5})
    whole, config = (
        config_of(tmp_path / name, stage, min_workers=1).model_copy(update={"optim": optim})
        for name in ("whole", "elastic")
    )
    try:
        train(whole)
        last = killed_beside(config, lambda: kill_node(cluster, config))
    finally:
        fill_up(cluster, 3)
    assert resumed_step(config) in (last, last + INTERVAL)
    assert any("of 2 workers" in line.get("message", "") for line in metrics(checkpoint(config)))
    one, other = (load_checkpoint(checkpoint(run))[0].state_dict() for run in (whole, config))
    for name, value in one.items():
        assert (other[name] - value).abs().max() < 1e-4, name
