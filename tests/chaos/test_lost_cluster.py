"""The head of a cluster is gone while a driver trains on it: it says so, and goes on elsewhere from the last state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.pairs_run import write_pairs
from tests.stages.train_process import long_config
from zscmr_ray.engine.resume import COMPLETE
from zscmr_ray.stages.interruptible import LOST_AFTER_S

pytestmark = [
    pytest.mark.long,
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
LIMIT_S = 300


def driver(config: Any, *address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.stages.train_process", config.model_dump_json(), *address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("what", ["the head's processes", "its control service"])
def test_a_lost_head_is_said_and_the_same_command_goes_on_elsewhere(tmp_path: Path, what: str) -> None:
    from ray.cluster_utils import Cluster

    config = long_config(tmp_path, num_epochs=20_000)
    write_pairs(config)
    with tempfile.TemporaryDirectory(prefix="zl", ignore_cleanup_errors=True) as folder:
        options = {"num_cpus": 2, "object_store_memory": 100_000_000, "temp_dir": folder}
        cluster = Cluster(initialize_head=True, head_node_args=options)
        try:
            processes = {
                name: [one.process.pid for one in found]
                for name, found in cluster.head_node.all_processes.items()
            }
            training = driver(config, cluster.address)
            deadline_s = time.monotonic() + LIMIT_S
            while not list((tmp_path / "checkpoint" / "engine").glob(f"*/{COMPLETE}")):
                assert training.poll() is None and time.monotonic() < deadline_s, training.communicate()[0]
                time.sleep(0.05)
            names = ["gcs_server"] if what == "its control service" else list(processes)
            for pid in [pid for name in names for pid in processes[name]]:
                os.kill(pid, signal.SIGKILL)
            said = training.communicate(timeout=LOST_AFTER_S + LIMIT_S)[0]
        finally:
            cluster.shutdown()
    assert training.returncode == 1, said
    assert "error: the connection to the cluster is lost" in said
    assert "run the same command" in said
    again = driver(config)
    deadline_s = time.monotonic() + LIMIT_S
    assert again.stdout is not None
    while "going on from step-" not in (line := again.stdout.readline()):
        assert line and time.monotonic() < deadline_s, "it did not go on"
    again.terminate()
    again.communicate(timeout=LIMIT_S)
    assert again.returncode == 130
