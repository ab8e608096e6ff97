"""SIGKILL of the driver in the middle of preprocess, embed and train, and of a training worker: the same bytes."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.rank_process import run_ranks
from tests.pairs_run import write_pairs
from tests.stages.corpus import corpus_config, good_samples, write_tar
from tests.stages.driver_process import driving
from tests.stages.numbers import RAY_WARNINGS, digests
from tests.stages.small_run import write_checkpoint
from tests.stages.train_process import long_config, parts_of, trained_run
from zscmr_ray.config import Config
from zscmr_ray.engine.collectives import rank
from zscmr_ray.engine.deepspeed import DeepSpeedEngine
from zscmr_ray.engine.resume import COMPLETE
from zscmr_ray.manifest import MANIFEST, require_manifest
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.plane.commit import COMMITS
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.stages.train import plan_training, run_train
from zscmr_ray.stages.train_loop import TrainJob, train_worker
from zscmr_ray.storage import Store

pytestmark = [pytest.mark.ray, *RAY_WARNINGS]

NUM_SHARDS, ROWS = 10, 33
ZERO_2 = functools.partial(long_config, num_epochs=75, num_workers=2, zero_stage=2)
CHECKPOINT = ("config.json", "meta.json", "model.safetensors", "split.json")


def kill_in_the_middle(stage: str, config: Config, *, after: int) -> None:
    """Run a stage in a process of its own and SIGKILL it as soon as some shards are committed."""
    store = stage_store(config, stage)
    with driving(stage, config) as driver:
        while len(store.list(COMMITS)) < after:
            assert driver.exit_code() is None, f"the driver ended by itself with {driver.exit_code()}"
            time.sleep(0.005)
        driver.kill()
    assert not store.exists(MANIFEST), "killed too late"


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(ray_local: None, tmp_path: Path) -> None:
    for number in range(NUM_SHARDS):
        write_tar(tmp_path / f"shards/{number}.tar", good_samples(number, ROWS))
    killed, undisturbed = corpus_config(tmp_path, "killed"), corpus_config(tmp_path, "undisturbed")

    kill_in_the_middle("preprocess", killed, after=2)
    pairs = stage_store(killed, "preprocess")
    committed = {info.key: info.version for info in pairs.list() if info.key.startswith("part-")}
    assert committed
    result = run_preprocess(killed)
    assert result.counts["in"] == result.counts["out"] == NUM_SHARDS * ROWS
    kept = {info.key: info.version for info in pairs.list()}
    assert sum(kept[key] == version for key, version in committed.items()) >= 2
    run_preprocess(undisturbed)
    assert digests(pairs) == digests(stage_store(undisturbed, "preprocess"))

    for config in (killed, undisturbed):
        write_checkpoint(config)
    kill_in_the_middle("embed", killed, after=1)
    run_embed(killed)
    run_embed(undisturbed)
    assert digests(stage_store(killed, "embed")) == digests(stage_store(undisturbed, "embed"))


def checkpoint_bytes(run: Path) -> dict[str, bytes]:
    """The checkpoint's files; config.json holds the run's folder, which differs between runs."""
    files = {name: (run / "checkpoint" / name).read_bytes() for name in CHECKPOINT}
    return {name: data.replace(str(run).encode(), b"RUN") for name, data in files.items()}


def wait_for_state(run: Path, *, goes_on: Callable[[], bool]) -> None:
    """Wait until a resumable state of the training that goes on is whole."""
    while not list((run / "checkpoint" / "engine").glob(f"*/{COMPLETE}")):
        assert goes_on(), "the training ended before it wrote a resumable state"
        time.sleep(0.02)


def train_without_ray(run: str) -> None:
    """One rank of two under ZeRO 2."""
    os.environ["LOCAL_RANK"] = str(rank())
    config = ZERO_2(Path(run))
    pairs, parts = Store(f"{run}/pairs"), parts_of(Path(run))
    split, _ = plan_training(config, pairs, parts)
    job = TrainJob(
        config, split, pairs, parts, require_manifest(pairs, "preprocess").info, Store(f"{run}/whole")
    )
    train_worker(job, make_engine=lambda step, total: DeepSpeedEngine(step, config=config, total_steps=total))


def test_a_killed_worker_is_replaced_and_the_weights_are_the_same(ray_local: None, tmp_path: Path) -> None:
    """Of two workers under ZeRO 2; the undisturbed run is two plain processes."""
    config = ZERO_2(tmp_path)
    write_pairs(config)
    run_ranks(train_without_ray, 2, str(tmp_path))
    killed: list[int] = []
    has_ended = threading.Event()

    def kill() -> None:
        wait_for_state(tmp_path, goes_on=lambda: not has_ended.is_set())
        # TensorBoard's event files carry time and process id of the worker in their names; the newest one's works.
        events = max((tmp_path / "checkpoint" / "tensorboard").glob("events*"))
        killed.append(int(events.name.split(".")[-2]))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    run_train(config)
    has_ended.set()
    killer.join()
    assert killed
    lines = (tmp_path / "checkpoint" / "metrics.jsonl").read_text()
    assert '"event": "resumed"' in lines
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("checkpoint", "whole")]
    assert weights[0] == weights[1]


def test_a_killed_driver_goes_on_and_the_weights_are_the_same(
    ray_local: None, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    undisturbed = trained_run(tmp_path_factory.getbasetemp() / "trained")
    write_pairs(long_config(tmp_path))
    command = [sys.executable, "-m", "tests.stages.train_process", long_config(tmp_path).model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        wait_for_state(tmp_path, goes_on=lambda: driver.poll() is None)
        driver.kill()
    assert not (tmp_path / "checkpoint" / "manifest.json").exists()
    run_train(long_config(tmp_path))
    assert '"event": "resumed"' in (tmp_path / "checkpoint" / "metrics.jsonl").read_text()
    assert checkpoint_bytes(tmp_path) == checkpoint_bytes(undisturbed)
