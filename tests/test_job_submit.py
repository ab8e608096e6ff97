"""`ray job submit` of the real jobs, on a real cluster of this test's own, token authentication on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pairs_run import write_pairs
from tests.stages.corpus import good_samples, write_tar
from tests.stages.train_process import long_config
from zscmr_ray.config import Config
from zscmr_ray.engine.resume import COMPLETE
from zscmr_ray.manifest import read_manifest
from zscmr_ray.serving.front import free_ports
from zscmr_ray.storage import Store

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
PYTHON = sys.executable
START_LIMIT_S = 90
JOB_LIMIT_S = 200


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A head with a dashboard on loopback; ended by its pid. Yields the environment of its clients."""
    port, dashboard, client, agent = free_ports(4)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory(prefix="zj", ignore_cleanup_errors=True) as folder:
        command = [
            RAY, "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=200000000",
            f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
            f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
            "--disable-usage-stats", f"--temp-dir={folder}",
        ]  # fmt: skip
        log = Path(folder) / "head.log"
        with log.open("wb") as output:
            head = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
        try:
            _wait_for_jobs_api(environment, head, log)
            yield environment
        finally:
            # SIGTERM makes `ray start --block` end the processes it started, and only those.
            head.terminate()
            head.wait(timeout=60)


def _wait_for_jobs_api(environment: dict[str, str], head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        done = subprocess.run([RAY, "job", "list"], env=environment, capture_output=True, check=False)
        if done.returncode == 0:
            return
    raise AssertionError(f"no answer in {START_LIMIT_S} s: {log.read_text()}")


def _submit(environment: dict[str, str], job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--working-dir", str(ROOT), "--", PYTHON, f"jobs/{job}.py", *arguments]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=JOB_LIMIT_S
    )


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_preprocess_and_train_as_jobs(cluster: dict[str, str], tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_tar(tmp_path / "in" / f"s{number}.tar", good_samples(number, 40))
    run = tmp_path / "run"
    done = _submit(
        cluster, "preprocess", "--input", str(tmp_path / "in"), "--run", str(run),
        "--set", "preprocess.image_backbone=tiny", "--set", "preprocess.text_backbone=tiny",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exit code: 0" in done.stdout
    small = ["model.width=16", "model.latent=8", "model.num_heads=2", "model.num_noise_samples=8"]
    short = ["optim.max_epochs=2", "train.global_batch_size=8", "split.min_items_per_class=2"]
    settings = [word for text in (*small, *short) for word in ("--set", text)]
    done = _submit(cluster, "train", "--run", str(run), *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exit code: 0" in done.stdout
    manifest = read_manifest(Store(run / "checkpoint"))
    assert manifest is not None and manifest.counts["steps"] > 0


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_job_that_cannot_run_says_its_exit_code(cluster: dict[str, str], tmp_path: Path) -> None:
    done = _submit(cluster, "train", "--run", str(tmp_path / "nothing"))
    assert done.returncode == 1, "ray job submit knows 0 and 1 only"
    assert "exit code: 3" in done.stdout
    assert "zscmr preprocess" in done.stdout
    without = {**cluster, "RAY_AUTH_MODE": "disabled"}
    refused = subprocess.run([RAY, "job", "list"], env=without, capture_output=True, text=True, check=False)
    assert refused.returncode != 0, "the cluster must ask for a token"


def _settings(config: Config) -> list[str]:
    """A small configuration as command-line words: the sections that a training reads."""
    default = Config()
    return [
        f"--set={section}.{name}={value!r}"
        for section in ("model", "optim", "train")
        for name, value in getattr(config, section)
        if value != getattr(getattr(default, section), name)
    ]


def _zscmr_submit(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [str(Path(PYTHON).with_name("zscmr")), "submit", "train", "--python", PYTHON, *arguments]
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _stopper(environment: dict[str, str], job: str) -> subprocess.Popen[str]:
    """`ray job stop`, its imports done, waiting for a line to begin: a training is over in seconds."""
    program = (
        "import sys; from ray.scripts.scripts import main; from ray.dashboard.modules.job import cli; "
        f"sys.stdin.readline(); sys.argv = ['ray', 'job', 'stop', {job!r}]; main()"
    )
    command = [PYTHON, "-c", program]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_stopped_job_goes_on_and_ends_with_the_weights_of_an_undisturbed_one(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    """`ray job stop` in the middle: status STOPPED, exit code 130 here, and the same command goes on."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    write_pairs(long_config(stopped))
    settings = [*_settings(long_config(stopped)), f"--set=data.pairs_uri={stopped / 'pairs'}"]
    first = _zscmr_submit(cluster, "--run", str(stopped), *settings)
    assert first.stdout is not None
    job = re.search(r"--submission-id (\S+)", first.stdout.readline())
    assert job is not None
    stopper = _stopper(cluster, job.group(1))
    deadline_s = time.monotonic() + JOB_LIMIT_S
    while not list((stopped / "checkpoint" / "engine").glob(f"*/{COMPLETE}")):
        assert first.poll() is None and time.monotonic() < deadline_s, first.communicate()[0]
        time.sleep(0.02)
    stopper.communicate("now\n", timeout=JOB_LIMIT_S)
    said = first.communicate(timeout=JOB_LIMIT_S)[0]
    assert stopper.returncode == 0 and first.returncode == 130, said
    assert "was stopped" in said and "exit code: 0" not in said
    assert read_manifest(Store(stopped / "checkpoint")) is None
    for run in (stopped, whole):
        process = _zscmr_submit(cluster, "--run", str(run), *settings)
        said = process.communicate(timeout=JOB_LIMIT_S)[0]
        assert process.returncode == 0, said
        assert ("going on from step-" in said) == (run == stopped), said
    weights = [(run / "checkpoint" / "model.safetensors").read_bytes() for run in (stopped, whole)]
    assert weights[0] == weights[1]
