"""SIGKILL at random moments of a worker, the driver and the S3 server: 0 rows lost, 0 doubled, 0 bytes other.

On a local disk the workers that die commit as well; on S3 another one does.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.s3_server import S3Server, server_with
from tests.stages.corpus import bad_samples, corpus_config, good_samples, write_tar
from tests.stages.driver_process import Driver, driving
from tests.stages.inline_executor import InlineExecutor
from tests.stages.numbers import digests
from zscmr_ray.config import Config
from zscmr_ray.manifest import MANIFEST, Manifest, read_manifest
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.plane import on_ray
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.storage import Store

pytestmark = pytest.mark.ray

NUM_SHARDS, ROWS = 12, 40
KINDS = ("worker",) * 6 + ("driver",) * 2 + ("server",) * 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kills")
    for number in range(NUM_SHARDS):
        rows = good_samples(number, ROWS) + (bad_samples() if number % 4 == 0 else [])
        write_tar(root / f"shards/{number:02}.tar", rows)
    return root


@pytest.fixture(scope="module")
def expected(corpus: Path) -> dict[str, str]:
    """The bytes of an undisturbed run, manifest included: without Ray, on a local disk."""
    config = corpus_config(corpus, "undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_ray, "RayExecutor", InlineExecutor)
        run_preprocess(config)
    return digests(stage_store(config, "preprocess"))


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with server_with("kills") as running:
        yield running


class Killer:
    """Drives a stage to its end through kills; counts them by kind, and how drivers ended by themselves."""

    def __init__(self, server: S3Server, rng: random.Random, *, log: Path) -> None:
        self.server, self.rng, self.log = server, rng, log
        self.kills: Counter[str] = Counter()
        self.ends: Counter[int] = Counter()

    def finish(self, config: Config, kinds: list[str], *, deadline: float) -> None:
        """Run the same command until the directory is complete; each kind of `kinds` dies once on the way."""
        store = stage_store(config, "preprocess")
        while not store.exists(MANIFEST):
            assert time.monotonic() < deadline, f"not finished in time after {dict(self.kills)}"
            with driving("preprocess", config, log=self.log) as driver:
                while kinds and self._wait_for_work(driver):
                    if self._kill(kinds[-1], driver):
                        self.kills[kinds.pop()] += 1
                    if driver.exit_code() is not None:
                        break
                # After a kill of the driver the next one begins at once, beside what is left of the first.
                if driver.exit_code() != -signal.SIGKILL:
                    self.ends[driver.wait(max(1.0, deadline - time.monotonic()))] += 1

    def _wait_for_work(self, driver: Driver) -> bool:
        """Wait for workers, then for a random moment; whether the driver is still there."""
        while driver.exit_code() is None and not driver.workers():
            time.sleep(0.05)
        moment = time.monotonic() + self.rng.expovariate(1.0)
        while driver.exit_code() is None and time.monotonic() < moment:
            time.sleep(0.02)
        return driver.exit_code() is None

    def _kill(self, kind: str, driver: Driver) -> bool:
        if kind == "worker":
            workers = driver.workers()
            with contextlib.suppress(ProcessLookupError):
                if workers:
                    os.kill(self.rng.choice(workers), signal.SIGKILL)
                    return True
            return False
        if kind == "driver":
            driver.kill()
            return True
        self.server.kill()
        time.sleep(self.rng.uniform(0, 3))
        self.server.start()
        return True


def check_output(store: Store, corpus: Path, expected: dict[str, str]) -> None:
    """Byte for byte, and counted: every row once, as an item or a reject."""
    manifest = read_manifest(store)
    assert isinstance(manifest, Manifest)
    parts = {key: digest for key, digest in digests(store).items() if not key.endswith(MANIFEST)}
    assert parts == {key: digest for key, digest in expected.items() if not key.endswith(MANIFEST)}
    ids: Counter[str] = Counter()
    for part in manifest.parts:
        if not part.name.startswith("rejected/"):
            with store.open(part.name) as file:
                ids.update(pq.read_table(file, columns=["id"])["id"].to_pylist())
    num_bad = len(bad_samples()) * (NUM_SHARDS // 4)
    assert len(ids) == NUM_SHARDS * ROWS and set(ids.values()) == {1}
    assert manifest.counts["rejected"] == num_bad
    assert manifest.counts["in"] == NUM_SHARDS * ROWS + num_bad


def config_there(corpus: Path, name: str) -> Config:
    uri = f"s3://kills/{name}"
    if not Store("s3://kills/shards").list():
        for info in Store(corpus / "shards").list():
            Store("s3://kills/shards").put_file(info.key, corpus / "shards" / info.key)
    return corpus_config(corpus, data={"input_uri": "s3://kills/shards", "run_uri": uri})


@pytest.mark.timeout(600)
def test_one_kill_of_each(corpus: Path, expected: dict[str, str], server: S3Server, tmp_path: Path) -> None:
    killer = Killer(server, random.Random(0), log=tmp_path / "log")
    kinds, num_runs = ["driver", "server", "worker"], 0
    # A fast machine may be done before its time has come: then the rest of them dies in another run.
    while kinds:
        config = config_there(corpus, f"few-{num_runs}")
        killer.finish(config, kinds, deadline=time.monotonic() + 500)
        check_output(stage_store(config, "preprocess"), corpus, expected)
        num_runs += 1
    assert killer.kills == {"driver": 1, "server": 1, "worker": 1}


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("place", ["s3", "local"])
def test_a_hundred_kills(
    corpus: Path,
    expected: dict[str, str],
    server: S3Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    place: str,
) -> None:
    kinds_there = [kind for kind in KINDS if place == "s3" or kind != "server"]
    killer = Killer(server, random.Random(1), log=tmp_path / "log")
    begun = time.monotonic()
    num_runs = 0
    while sum(killer.kills.values()) < 100:
        left = 100 - sum(killer.kills.values())
        kinds = [killer.rng.choice(kinds_there) for _ in range(min(10, left))]
        name = f"many-{num_runs}"
        config = config_there(corpus, name) if place == "s3" else corpus_config(corpus, name)
        killer.finish(config, kinds, deadline=begun + 7000)
        check_output(stage_store(config, "preprocess"), corpus, expected)
        num_runs += 1
        with capsys.disabled():
            print(
                f"\n{sum(killer.kills.values())} kills {dict(killer.kills)} in {num_runs} runs, "
                f"{time.monotonic() - begun:.0f} s; drivers ended {dict(killer.ends)}; "
                "0 lost, 0 doubled, 0 other bytes",
                flush=True,
            )
