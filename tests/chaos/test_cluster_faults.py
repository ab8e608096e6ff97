"""What a cluster loses in the middle of a stage, and that it costs time only: the same bytes, counted, at the end.

Nodes are `ray start` processes of their own: a head that runs no work, and two nodes of a CPU. Worker processes, drivers
and storage under preprocess are test_random_kills.py's, nodes test_nodes.py's, training's kills test_training_kills.py's.
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
from tests.chaos.network import network_namespace
from tests.chaos.tables import note_row
from tests.pairs_run import write_pairs
from tests.ray_nodes import Cluster, Node, cluster
from tests.s3_server import S3Server, server_with
from tests.stages.corpus import bad_samples, corpus_config, good_samples, write_tar
from tests.stages.inline_executor import InlineExecutor
from tests.stages.numbers import digests
from tests.stages.small_run import write_checkpoint
from tests.stages.train_process import long_config
from zscmr_ray.config import Config
from zscmr_ray.engine.resume import COMPLETE
from zscmr_ray.manifest import MANIFEST, read_manifest
from zscmr_ray.recipes import vary
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.plane import on_ray
from zscmr_ray.stages.plane.commit import COMMITS
from zscmr_ray.stages.plane.staging import STAGING
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.storage import Store

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(1800)]

NUM_SHARDS, ROWS = 60, 40
NUM_NODES = 2
# From a fault to the next shard or resumable step that is safe; a node that does not answer is given up after half of it.
RECOVERY_LIMIT_S = 300
# Beside other work on the machine everything takes longer; nothing here depends on it.
STAGE_LIMIT_S = 1500


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with server_with("faults") as running:
        yield running


@pytest.fixture(scope="module")
def nodes(server: S3Server) -> Iterator[Cluster]:
    """One cluster for all; what a test has killed is there again for the next."""
    with cluster(num_nodes=0) as found:
        yield found


@pytest.fixture(scope="module")
def reference(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Undisturbed runs, without a cluster: pairs, embeddings of raw shards, and a training of its own."""
    root = tmp_path_factory.mktemp("faults")
    for number in range(NUM_SHARDS):
        rows = good_samples(number, ROWS) + (bad_samples() if number % 4 == 0 else [])
        write_tar(root / f"shards/{number:02}.tar", rows)
    config = corpus_config(root, "undisturbed", embed={"source": "shards"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_ray, "RayExecutor", InlineExecutor)
        run_preprocess(config)
        write_checkpoint(config)
        run_embed(config)
    return config


@dataclass
class Case:
    """A stage to run on a cluster, and how far it has come."""

    stage: str
    config: Config
    expected: dict[str, str]

    @property
    def store(self) -> Store:
        return stage_store(self.config, self.stage)

    def num_safe(self) -> int:
        """Shards committed, or steps that can be resumed from; more than any when complete."""
        try:
            if self.store.exists(MANIFEST):
                return 1 << 30
            if self.stage != "train":
                return len(self.store.list(COMMITS))
            states = [i.key for i in self.store.list("engine") if i.key.endswith(f"/{COMPLETE}")]
            return max((int(key.split("/")[-2].rpartition("-")[2]) for key in states), default=0)
        except Exception:  # The storage is the fault.
            return 0

    def found(self) -> dict[str, str]:
        """sha256 of what the stage made, apart from what says where or when."""
        if self.stage == "train":
            return {"model.safetensors": self.store.sha256("model.safetensors")}
        return {key: digest for key, digest in digests(self.store).items() if not key.endswith(MANIFEST)}


def make_case(stage: str, request: pytest.FixtureRequest, run: str) -> Case:
    if stage == "train":
        config = vary(long_config(Path("unused")), recipe="fgan", data={"run_uri": run})
        write_pairs(config)
        return Case(stage, config, request.getfixturevalue("trained"))
    reference: Config = request.getfixturevalue("reference")
    config = vary(reference, recipe="fgan", data={"run_uri": run}, embed={"model": reference.data.run_uri})
    return Case(stage, config, Case(stage, reference, {}).found())


@pytest.fixture(scope="module")
def trained(nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The weights of an undisturbed training."""
    folder = tmp_path_factory.mktemp("trained")
    config = long_config(folder / "run")
    write_pairs(config)
    nodes.mend(num_nodes=NUM_NODES)
    code = nodes.drive("train", config, log=folder / "log").wait(STAGE_LIMIT_S)
    assert code == 0, (folder / "log").read_text()[-4000:]
    return Case("train", config, {}).found()


def wait_until(condition: Callable[[], bool], driver: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + STAGE_LIMIT_S
    while not condition():
        # Asked again: what it did last may be what is waited for.
        assert driver.poll() is None or condition(), log.read_text()[-4000:]
        assert time.monotonic() < deadline_s, log.read_text()[-4000:]
        time.sleep(0.02)


def survive(case: Case, on: Cluster, fault: str, *, log: Path, node: Node | None = None) -> None:
    """Begin the stage, do the fault in its middle, bring it to its end, and compare."""
    driver = on.drive(case.stage, case.config, log=log)
    with contextlib.ExitStack() as stack:
        stack.callback(end_session, driver)
        wait_until(lambda: case.num_safe() > 0 and (node or busiest(on)).is_at_work(), driver, log)
        safe, since_s = case.num_safe(), time.monotonic()
        assert safe < 1 << 30, "the stage was over before the fault"
        undo = FAULTS[fault](on, driver, node or busiest(on), stack)
        if undo is not None:
            undo()
        if fault in {"head", "driver"}:
            end_session(driver)
            driver = on.drive(case.stage, case.config, log=log)
            stack.callback(end_session, driver)
        wait_until(lambda: case.num_safe() > safe, driver, log)
        recovery_s = time.monotonic() - since_s
        code, is_again = driver.wait(STAGE_LIMIT_S), fault in {"head", "driver"}
        for _ in range(2):
            # The storage, or the only node, was away for longer than the retries: the same command goes on.
            if code != 3:
                break
            is_again = True
            code = on.drive(case.stage, case.config, log=log).wait(STAGE_LIMIT_S)
        whole_s = time.monotonic() - since_s
    assert code == 0, log.read_text()[-4000:]
    check(case)
    assert recovery_s < RECOVERY_LIMIT_S
    kept = "the same weights" if case.stage == "train" else "0 rows lost, 0 doubled"
    again = "same command" if is_again else "by itself"
    times = f"{recovery_s:.0f} s, all of it {whole_s:.0f} s, {again}"
    note_row("chaos", [case.stage, WORDS[fault], kept, times])


def busiest(on: Cluster) -> Node:
    """The node, not the head, that has work, and of these the one with the most workers."""
    return max(on.nodes[1:], key=lambda node: (node.is_at_work(), len(node.workers())))


def check(case: Case) -> None:
    """Byte for byte what an undisturbed run made, whole by its manifest, nothing left over."""
    manifest = read_manifest(case.store)
    assert manifest is not None
    assert case.found() == case.expected
    if case.stage != "train":
        # Every part is listed once, and nothing else is there.
        assert sorted(part.name for part in manifest.parts) == sorted(case.found())
        assert not case.store.list(STAGING) and not case.store.list(COMMITS)
        counts = manifest.counts
        assert counts["in"] == counts["out"] + counts["rejected"] + counts["filtered"]


def end_session(driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a driver and what it started."""
    Node(driver, Path()).kill()


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        ("preprocess", "raylet"), ("preprocess", "head"), ("preprocess", "slow"),
        ("embed", "worker"), ("embed", "raylet"), ("embed", "driver"), ("embed", "head"), ("embed", "slow"),
        ("train", "raylet"), ("train", "head"), ("train", "slow"),
    ],
)  # fmt: skip
def test_a_fault_costs_time_only(
    nodes: Cluster, request: pytest.FixtureRequest, tmp_path: Path, stage: str, fault: str
) -> None:
    nodes.mend(num_nodes=NUM_NODES)
    survive(make_case(stage, request, str(tmp_path / "run")), nodes, fault, log=tmp_path / "log")


@pytest.mark.parametrize("stage", ["embed", "train"])
def test_storage_that_dies(
    nodes: Cluster, server: S3Server, request: pytest.FixtureRequest, tmp_path: Path, stage: str
) -> None:
    def restart(*_: object) -> None:
        server.kill()
        time.sleep(3)
        server.start()

    nodes.mend(num_nodes=NUM_NODES)
    case = make_case(stage, request, f"s3://faults/{stage}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAULTS, "storage", restart)
        survive(case, nodes, "storage", log=tmp_path / "log")


@pytest.mark.parametrize("stage", ["preprocess", "embed", "train"])
def test_a_node_that_is_cut_off(
    server: S3Server, request: pytest.FixtureRequest, tmp_path: Path, stage: str
) -> None:
    """Its processes go on without knowing, and write where the others write; a node in its place takes over."""
    case = make_case(stage, request, str(tmp_path / "run"))
    with network_namespace() as network, cluster(num_nodes=0, host=network.outside) as found:
        found.start_head(num_cpus=0)
        # Alone: the one worker of a training is nowhere else.
        node = found.add_node(host=network.inside, within=network.run)

        def cut(*_: object) -> None:
            network.cut()
            found.add_node(host=network.outside)

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(FAULTS, "cut", cut)
            survive(case, found, "cut", log=tmp_path / "log", node=node)
