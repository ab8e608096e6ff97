"""What every process of a running embed holds does not grow with what it has done: the slope of its own memory.

Shards are links to one tar, so that the corpus has no end in the test's time. Memory is RssAnon, what the process holds
for itself: pages of Ray's object store, which it shares and the store bounds, come and go with the chunks in flight.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from tests.stages.corpus import corpus_config, good_samples, write_tar
from tests.stages.driver_process import Driver, driving
from tests.stages.small_run import write_checkpoint
from zscmr_ray.config import Config
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.plane.commit import COMMITS

pytestmark = pytest.mark.ray

ROWS = 512
Samples = dict[int, list[tuple[float, int]]]


def endless(root: Path, *, num_shards: int) -> Config:
    """Many shards, one file; a model of tiny backbones; images and texts to vectors."""
    write_tar(root / "one.tar", good_samples(0, ROWS))
    (root / "shards").mkdir()
    for number in range(num_shards):
        (root / f"shards/{number:06}.tar").symlink_to(root / "one.tar")
    config = corpus_config(root, embed={"source": "shards", "chunk_rows": 64})
    write_checkpoint(config)
    return config


def own_kib(pid: int) -> int | None:
    """Anonymous resident memory of a process; None when it has gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    return None


def watch(driver: Driver, config: Config, *, seconds: float, every_s: float) -> Samples:
    """Memory of the driver and of each of its workers, from its first commit on, in minutes and KiB."""
    commits = stage_store(config, "embed")
    while not commits.list(COMMITS):
        assert driver.exit_code() is None, "the run ended before its first commit"
        time.sleep(0.1)
    found: Samples = defaultdict(list)
    started_s = time.monotonic()
    while (passed_s := time.monotonic() - started_s) < seconds:
        assert driver.exit_code() is None, "the corpus had an end"
        for pid in [driver.pid, *driver.workers()]:
            if (kib := own_kib(pid)) is not None:
                found[pid].append((passed_s / 60, kib))
        time.sleep(every_s)
    return found


def growth(samples: Samples, *, seconds: float) -> dict[int, tuple[float, float]]:
    """Of every process that was there for all of the last half: MB a minute, and the same as a fraction."""
    half, found = seconds / 120, {}
    for pid, points in samples.items():
        late = np.array([point for point in points if point[0] >= half])
        if points[0][0] < half and len(late) > 2 and late[-1, 0] > 0.95 * seconds / 60:
            slope, _ = np.polyfit(late[:, 0], late[:, 1], 1)
            found[pid] = slope / 1024, slope / late[:, 1].mean()
    return found


def run_and_measure(root: Path, *, num_shards: int, seconds: float) -> list[tuple[float, float]]:
    config = endless(root, num_shards=num_shards)
    with driving("embed", config, log=root / "log") as driver:
        samples = watch(driver, config, seconds=seconds, every_s=max(0.5, seconds / 600))
        names = {pid: driver.name(pid) for pid in samples}
    found = growth(samples, seconds=seconds)
    for pid, (mb, fraction) in found.items():
        print(f"{names[pid]}: {samples[pid][-1][1] >> 10} MB, {mb:+.2f} MB = {fraction:+.4%} a minute")
    # The driver, and at the least two workers.
    assert len(found) >= 3
    return list(found.values())


@pytest.mark.timeout(300)
def test_no_process_grows_in_a_minute(tmp_path: Path) -> None:
    """A process that kept the 10 MB of each chunk would grow by gigabytes; one that starts its work may by 100 MB."""
    found = run_and_measure(tmp_path, num_shards=3_000, seconds=40)
    assert max(mb for mb, _ in found) < 600


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_process_grows_in_twenty_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        found = run_and_measure(tmp_path, num_shards=60_000, seconds=1200)
    assert max(fraction for _, fraction in found) < 0.01
