"""Safe by default: a namespace for each command, outputs under leases, tokens and loopback wherever a Ray is started."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.embeddings_run import run_config, write_embeddings
from tests.own_ray import own_ray
from tests.pairs_run import tiny_config, write_pairs
from tests.stages.corpus import corpus_config, good_samples, write_tar
from tests.stages.small_run import small_config, write_checkpoint
from tests.stages.small_run import write_pairs as write_small_pairs
from zscmr_ray.cli.session import RAY_ENVIRONMENT, UNWATCHED_ENVIRONMENT, ray_session
from zscmr_ray.config import Config, RaySection
from zscmr_ray.errors import RefusedError
from zscmr_ray.lease import take_lease
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.evaluate import run_evaluate
from zscmr_ray.stages.index import run_index
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.stages.train import run_train

ROOT = Path(__file__).parents[1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What commands ask of `ray.init`, which is not done here: a real one's namespaces are in test_every_job.py."""
    import ray

    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "init", lambda *words, **options: found.append(options))
    return found


@pytest.mark.parametrize("address", [None, "127.0.0.1:6379"])
def test_each_command_has_a_namespace_of_its_own(asked: list[dict[str, Any]], address: str | None) -> None:
    for _ in range(2):
        with ray_session(RaySection(address=address)):
            pass
    with ray_session(RaySection(address=address, namespace="mine")):
        pass
    first, second, named = (options["namespace"] for options in asked)
    assert first.startswith("zscmr-") and second.startswith("zscmr-") and first != second
    assert named == "mine"


def test_a_ray_started_here_listens_on_loopback_and_asks_for_a_token(asked: list[dict[str, Any]]) -> None:
    with ray_session(RaySection(dashboard_port=8265)):
        pass
    with ray_session(RaySection()):
        pass
    with_dashboard, without = asked
    assert with_dashboard["dashboard_host"] == without["dashboard_host"] == "127.0.0.1"
    assert with_dashboard["include_dashboard"] and not without["include_dashboard"]
    assert RAY_ENVIRONMENT["RAY_AUTH_MODE"] == "token"


def test_a_ray_of_one_command_is_not_measured_and_leaves_no_trace_in_the_environment() -> None:
    before = dict(os.environ)
    with own_ray(num_cpus=1, object_store_bytes=100_000_000):
        started = {process.pid: process for process in psutil.Process().children(recursive=True)}
        raylet = next(process for process in started.values() if process.name() == "raylet")
        assert UNWATCHED_ENVIRONMENT.items() <= raylet.environ().items()
        commands = " ".join(word for process in started.values() for word in process.cmdline())
        assert not any(
            name in commands for name in ("log_monitor.py", "monitor.py", "dashboard/dashboard.py")
        )
    assert not os.environ.keys() & UNWATCHED_ENVIRONMENT.keys() - before.keys()


def _preprocess(folder: Path) -> Config:
    write_tar(folder / "shards/a.tar", good_samples(1, 4))
    return corpus_config(folder)


def _train(folder: Path) -> Config:
    config = tiny_config(folder / "run")
    write_pairs(config)
    return config


def _trained(folder: Path) -> Config:
    config = small_config(str(folder / "run"))
    write_small_pairs(config)
    write_checkpoint(config)
    return config


def _embedded(folder: Path) -> Config:
    config = run_config(folder)
    write_embeddings(config)
    return config


@pytest.mark.parametrize(
    ("stage", "prepare", "run"),
    [
        ("preprocess", _preprocess, run_preprocess),
        ("train", _train, run_train),
        ("evaluate", _trained, run_evaluate),
        ("embed", _trained, run_embed),
        ("index", _embedded, run_index),
    ],
)
def test_no_stage_writes_where_another_driver_is_at_work(
    tmp_path: Path, stage: str, prepare: Callable[[Path], Config], run: Callable[[Config], object]
) -> None:
    config = prepare(tmp_path)
    store = stage_store(config, stage)
    with take_lease(store, stage):
        before = [info.key for info in store.list()]
        with pytest.raises(RefusedError, match="process") as caught:
            run(config)
        assert caught.value.exit_code == 4
        assert [info.key for info in store.list()] == before


def test_whoever_writes_a_stage_holds_its_lease() -> None:
    """`write_manifest` completes a directory: only a claim may call it, which has a lease."""
    callers = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "zscmr_ray").rglob("*.py")
        if re.search(r"\bwrite_manifest\(", path.read_text())
    }
    assert callers == {"zscmr_ray/claim.py", "zscmr_ray/manifest.py"}


STARTS = re.compile(r"\bray start\b(?!`)[^\n]*--head[^\n]*")


def test_every_head_that_pages_start_has_its_dashboard_on_loopback() -> None:
    """So do the launchers' (test_cluster_files.py). Kubernetes' heads take jobs there, behind a NetworkPolicy."""
    files = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "cluster" / "README.md"]
    found = [(path, line) for path in files if path.is_file() for line in STARTS.findall(path.read_text())]
    assert found
    for path, line in found:
        assert "--dashboard-host=127.0.0.1" in line, f"{path}: {line}"


def test_every_page_that_starts_or_joins_a_cluster_turns_the_token_on() -> None:
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "cluster" / "README.md"]:
        text = path.read_text()
        if re.search(r"^(ray start|ray job submit)", text, re.MULTILINE):
            assert "RAY_AUTH_MODE=token" in text, path
    assert "RAY_AUTH_MODE=token" in (ROOT / "cluster" / "Dockerfile").read_text()
    assert "RAY_AUTH_MODE=token" in (ROOT / "Makefile").read_text()
