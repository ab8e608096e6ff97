"""A disk that is full, or closed, at many steps of a stage: a clear error; once there is room the same command finishes."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.dying import Life, living
from tests.pairs_run import tiny_config, write_pairs
from tests.stages.corpus import bad_samples, corpus_config, good_samples, write_tar
from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from tests.stages.numbers import digests
from tests.stages.small_run import write_checkpoint
from zscmr_ray.config import Config
from zscmr_ray.engine.bare import BareEngine
from zscmr_ray.errors import DataError, StorageError, UnsavedStateError
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.index import run_index
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.stages.train import plan_training
from zscmr_ray.stages.train_loop import TrainJob, train_worker
from zscmr_ray.storage import Store

pytestmark = pytest.mark.usefixtures("inline_plane")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_tar(tmp_path / "shards/a.tar", good_samples(1, 40))
    write_tar(tmp_path / "shards/b.tar", good_samples(2, 20) + bad_samples())
    return tmp_path


@pytest.fixture
def disk() -> Iterator[Callable[[int], Path]]:
    """A disk in memory of so many KB, and more when called again; skipped where mounting is not allowed."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = False

        def resize(size_kb: int) -> Path:
            nonlocal mounted
            options = f"{'remount,' if mounted else ''}size={size_kb}k,mode=755"
            command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
            mounted = True
            return Path(folder)

        yield resize
        if mounted:
            subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("stage", ["preprocess", "embed", "index"])
def test_a_full_disk(corpus: Path, disk: Callable[[int], Path], stage: str) -> None:
    whole = corpus_config(corpus)
    run_until(whole, "index")
    run = {"preprocess": run_preprocess, "embed": run_embed, "index": run_index}[stage]
    size_kb = 20_000
    config = corpus_config(corpus, data={"run_uri": str(disk(size_kb))})
    before = {"preprocess": None, "embed": "preprocess", "index": "embed"}[stage]
    if before is not None:
        run_until(config, before)
    size_kb = used_kb(disk(size_kb)) + 4
    errors = []
    while True:
        disk(size_kb)
        try:
            with living(Life()):
                run(config)
            break
        except DataError as error:
            assert error.exit_code == 3
            errors.append(str(error))
        size_kb += 16
        assert size_kb < 20_000
    assert len(errors) >= 3
    for text in errors:
        assert "the disk is full" in text, text
    assert digests(stage_store(config, stage)) == digests(stage_store(whole, stage))
    assert not list(Path(stage_store(config, stage).uri).glob("**/.tmp-part*"))


def test_a_disk_full_of_training_states(tmp_path: Path, disk: Callable[[int], Path]) -> None:
    """Every rank says so alike, the last whole state stays, and with more room the same command ends in the same weights."""
    config = tiny_config(tmp_path, train={"checkpoint_every_steps": 3, "keep_best": False})
    pairs, info = Store(tmp_path / "pairs"), write_pairs(config).info
    parts = tuple(sorted(path.name for path in (tmp_path / "pairs").glob("part-*")))
    split, _ = plan_training(config, pairs, parts)

    def train(checkpoint: Path) -> None:
        train_worker(
            TrainJob(config, split, pairs, parts, info, Store(checkpoint)),
            make_engine=lambda step, total: BareEngine(step, optim=config.optim, total_steps=total),
        )

    train(tmp_path / "whole")
    states = sum(path.stat().st_size for path in (tmp_path / "whole" / "engine").rglob("*") if path.is_file())
    size_kb = 3 * states // 4 // 1024
    with pytest.raises(UnsavedStateError, match=r"state of step \d+ could not be written.*the disk is full"):
        train(disk(size_kb) / "checkpoint")
    assert list((disk(size_kb) / "checkpoint").glob("engine/step-*/complete.json"))
    train(disk(20_000) / "checkpoint")
    weights = [(folder / "model.safetensors").read_bytes()
               for folder in (tmp_path / "whole", disk(20_000) / "checkpoint")]  # fmt: skip
    assert weights[0] == weights[1]


def test_a_closed_directory(corpus: Path) -> None:
    """Root may write anywhere: it becomes nobody meanwhile."""
    whole = corpus_config(corpus)
    run_until(whole, "preprocess")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        closed = Path(folder) / "run"
        closed.mkdir(mode=0o555)
        shards = Path(folder) / "shards"
        subprocess.run(["cp", "-a", str(corpus / "shards"), str(shards)], check=True)
        config = corpus_config(corpus, data={"input_uri": str(shards), "run_uri": str(closed)})
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with (
                living(Life()),
                pytest.raises(StorageError, match=r"cannot write here; got: .*Permission denied"),
            ):
                run_preprocess(config)
        finally:
            os.seteuid(user)
        closed.chmod(0o755)
        with living(Life()):
            run_preprocess(config)
        assert digests(stage_store(config, "preprocess")) == digests(stage_store(whole, "preprocess"))


def run_until(config: Config, last: str) -> None:
    run_preprocess(config)
    if last == "preprocess":
        write_checkpoint(config)
        return
    write_checkpoint(config)
    run_embed(config)
    if last == "index":
        run_index(config)


def used_kb(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024
