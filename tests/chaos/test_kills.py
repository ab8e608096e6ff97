"""SIGKILL of the driver in the middle of preprocess and of embed; the same command again ends in the same bytes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.stages.corpus import corpus_config, good_samples, write_tar
from tests.stages.driver_process import driving
from tests.stages.numbers import RAY_WARNINGS, digests
from tests.stages.small_run import write_checkpoint
from zscmr_ray.config import Config
from zscmr_ray.manifest import MANIFEST
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.plane.commit import COMMITS
from zscmr_ray.stages.preprocess import run_preprocess

pytestmark = [pytest.mark.ray, *RAY_WARNINGS]

NUM_SHARDS, ROWS = 10, 33


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
