"""`ray job submit` of every stage on a cluster of three nodes: shipped from a clean directory, and installed.

What one node shows in `make test` (exit codes, stop and resume of a training) is test_job_submit.py's.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from ray.job_submission import JobSubmissionClient

from tests.ray_nodes import BIN, Cluster, cluster
from tests.stages.corpus import good_samples, write_tar
from tests.stages.numbers import digests
from zscmr_ray.client import Client
from zscmr_ray.manifest import MANIFEST, require_manifest
from zscmr_ray.serving.front import free_ports
from zscmr_ray.stages.plane.commit import COMMITS
from zscmr_ray.storage import Store

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(3000)]

ROOT = Path(__file__).parents[1]
# Beside other work on the machine everything takes longer; nothing here depends on it.
JOB_LIMIT_S = 900
TINY = ["preprocess.image_backbone=tiny", "preprocess.text_backbone=tiny", "preprocess.region_grid=2"]
SMALL = [
    "model.width=16", "model.latent=8", "model.num_heads=2", "model.num_noise_samples=8", "optim.max_epochs=2",
    "train.global_batch_size=8", "split.min_items_per_class=2", "evaluate.bootstrap_resamples=100",
]  # fmt: skip
SHIPPED_FILES = ("zscmr_ray", "jobs", "pyproject.toml", "ray_config.yaml", ".rayignore")
WHERE = 'import zscmr_ray, os\nprint("package:", os.path.realpath(zscmr_ray.__file__))\n'


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(num_nodes=3) as found:
        yield found


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the project's files alone, a job that says where its package is, and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    for name in SHIPPED_FILES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    (folder / "jobs" / "where.py").write_text(WHERE)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for number in range(4):
        write_tar(folder / f"s{number}.tar", good_samples(number, 30))
    return folder


def ship(clean: Path) -> list[str]:
    return ["--working-dir", str(clean)]


def installed(folder: Path) -> list[str]:
    return ["--installed", str(folder)]


def submit(on: Cluster, stage: str, how: Sequence[str], *words: str) -> subprocess.CompletedProcess[str]:
    """`zscmr submit`, which prints and runs `ray job submit`, from a directory of no account."""
    return on.call(
        "zscmr", "submit", stage, "--python", sys.executable, *how, *words, cwd=on.folder, limit_s=JOB_LIMIT_S
    )


def begin(on: Cluster, job: str, stage: str, clean: Path, *words: str) -> None:
    """`ray job submit` as typed, without waiting."""
    command = ["--submission-id", job, "--no-wait", "--working-dir", str(clean)]
    done = on.call("ray", "job", "submit", *command, "--", sys.executable, f"jobs/{stage}.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr


def wait_for_end(on: Cluster, job: str) -> str:
    """Follow a job to its end; its log."""
    done = on.call("ray", "job", "logs", "--follow", job, limit_s=JOB_LIMIT_S)
    return done.stdout + done.stderr


def test_a_shipped_package_is_the_one_that_runs(nodes: Cluster, clean: Path, tmp_path: Path) -> None:
    said = nodes.call("zscmr", "doctor", "--address", nodes.address, "--run", str(tmp_path))
    assert f"ok   jobs: {nodes.environment['RAY_API_SERVER_ADDRESS']} is this cluster's" in said.stdout, (
        said.stdout
    )
    shipped = submit(nodes, "where", ship(clean))
    assert shipped.returncode == 0, shipped.stdout + shipped.stderr
    (said,) = [line for line in shipped.stdout.splitlines() if line.startswith("package:")]
    assert "working_dir_files" in said and str(ROOT) not in said
    there = submit(nodes, "where", installed(clean))
    (said,) = [line for line in there.stdout.splitlines() if line.startswith("package:")]
    assert "working_dir_files" not in said


@pytest.mark.parametrize("shipped", [True, False], ids=["shipped", "installed"])
def test_every_stage_is_a_job(
    nodes: Cluster, clean: Path, shards: Path, tmp_path: Path, *, shipped: bool
) -> None:
    how, run = ship(clean) if shipped else installed(ROOT), tmp_path / "run"
    for stage, words in {
        "preprocess": ["--input", str(shards), *sets(*TINY)],
        "train": sets(*SMALL, "train.num_workers=2"),
        "evaluate": sets(*SMALL, "train.num_workers=2"),
        "embed": [],
        "index": [],
        # All is done: it returns at once.
        "pipeline": ["--input", str(shards), *sets(*TINY, *SMALL, "train.num_workers=2")],
    }.items():
        done = submit(nodes, stage, how, "--run", str(run), *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "exit code: 0" in done.stdout, stage
        log = nodes.call("ray", "job", "logs", job_of(done.stdout))
        assert "exit code: 0" in log.stdout, stage
    for stage in ("pairs", "checkpoint", "report", "embeddings", "index"):
        assert (run / stage / MANIFEST).exists()
    words = ["--recipe", "infonce", "--pairs", f"small={run / 'pairs'}", "--run", str(tmp_path / "table")]
    done = submit(nodes, "ablate", how, *words, *sets(*SMALL))
    assert done.returncode == 0 and "exit code: 0" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "table" / "table.md").exists()
    serve_as_a_job(nodes, clean, run)


def serve_as_a_job(nodes: Cluster, clean: Path, run: Path) -> None:
    (port,) = free_ports(1)
    job = f"serve-{port}"
    begin(nodes, job, "serve", clean, "--run", str(run), "--set", f"serve.port={port}")
    with Client(f"http://127.0.0.1:{port}") as client:
        assert client.ready(wait_s=JOB_LIMIT_S), wait_for_end(nodes, job)
        assert len(client.search(text="a picture of kind a", k=3).results) == 3
    assert nodes.call("ray", "job", "stop", job).returncode == 0
    assert "STOPPED" in nodes.call("ray", "job", "status", job).stdout.upper()


def job_of(said: str) -> str:
    """The submission id in what `zscmr submit` prints first."""
    words = said.splitlines()[0].split()
    return words[words.index("--submission-id") + 1]


def test_a_stopped_embedding_goes_on(nodes: Cluster, clean: Path, shards: Path, tmp_path: Path) -> None:
    """Stopped after the first shards; the same command keeps them and ends in the bytes of an undisturbed run."""
    many = tmp_path / "many"
    for number in range(60):
        write_tar(many / f"{number:02}.tar", good_samples(number, 60))
    words = ["--input", str(many), *sets(*TINY, "preprocess.num_encoders=1", "preprocess.chunk_rows=16")]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    client = JobSubmissionClient(nodes.environment["RAY_API_SERVER_ADDRESS"])
    begin(nodes, "to-be-stopped", "preprocess", clean, "--run", str(stopped), *words)
    pairs, deadline_s = Store(stopped / "pairs"), time.monotonic() + JOB_LIMIT_S
    while not pairs.list(COMMITS):
        assert time.monotonic() < deadline_s, nodes.call("ray", "job", "logs", "to-be-stopped").stdout
        time.sleep(0.02)
    # What `ray job stop` asks for, without the seconds that a command needs to start: the rest is done in as many.
    assert client.stop_job("to-be-stopped")
    assert nodes.call("ray", "job", "stop", "to-be-stopped").returncode == 0
    assert "STOPPED" in nodes.call("ray", "job", "status", "to-be-stopped").stdout.upper()
    assert not pairs.exists(MANIFEST)
    again = submit(nodes, "preprocess", ship(clean), "--run", str(stopped), *words)
    assert again.returncode == 0 and "shards were done before" in again.stdout, again.stdout
    assert submit(nodes, "preprocess", ship(clean), "--run", str(whole), *words).returncode == 0
    assert digests(pairs) == digests(Store(whole / "pairs"))


def test_two_jobs_at_once(nodes: Cluster, clean: Path, shards: Path, tmp_path: Path) -> None:
    """In runs of their own both end well, each in a namespace of its own; in one run the second is refused."""
    words = ["--input", str(shards), *sets(*TINY, "preprocess.num_encoders=1")]
    for name in ("one", "two"):
        begin(nodes, name, "preprocess", clean, "--run", str(tmp_path / name), *words)
    for name in ("one", "two"):
        assert "exit code: 0" in wait_for_end(nodes, name)
        counts = require_manifest(Store(tmp_path / name / "pairs"), "preprocess").counts
        assert counts["in"] == counts["out"] == 120
    said = nodes.call("ray", "list", "actors", "--detail", "--format", "json", "--limit", "1000")
    actors = json.loads(said.stdout)
    spaces = {
        actor["job_id"]: actor["ray_namespace"] for actor in actors if "MapWorker" in actor["class_name"]
    }
    assert len(set(spaces.values())) == len(spaces) >= 2, spaces
    for name in ("first", "second"):
        begin(nodes, name, "preprocess", clean, "--run", str(tmp_path / "same"), *words)
    logs = [wait_for_end(nodes, name) for name in ("first", "second")]
    # The last of each: Ray says the end of a failed job's log twice.
    ends = sorted([line for line in log.splitlines() if line.startswith("exit code:")][-1] for log in logs)
    # Refused, or, when it began after the other had ended, nothing to do.
    assert ends in (["exit code: 0", "exit code: 4"], ["exit code: 0", "exit code: 0"]), logs
    assert Store(tmp_path / "same" / "pairs").exists(MANIFEST)


def test_an_exit_code_is_said(nodes: Cluster, clean: Path, tmp_path: Path) -> None:
    done = submit(nodes, "train", ship(clean), "--run", str(tmp_path / "nothing"))
    assert done.returncode == 3 and "exit code: 3" in done.stdout, done.stdout + done.stderr
    assert (BIN / "zscmr").exists()
