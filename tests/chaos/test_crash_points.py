"""Every crash point of small jobs, local and on S3: die before change k, for each k, then run the same command again.

What is visible at the moment of death is whole and right, and the rerun ends in the bytes of an undisturbed run, with
nothing lost, doubled or left over.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.dying import Died, Life, living, storage_of
from tests.stages.corpus import bad_samples, corpus_config, good_samples, write_tar
from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from tests.stages.small_run import write_checkpoint
from zscmr_ray.claim import Update
from zscmr_ray.config import Config
from zscmr_ray.lease import LEASES
from zscmr_ray.manifest import STAGE_MARK, read_manifest
from zscmr_ray.recipes import vary
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.index import run_index
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.storage import Store
from zscmr_ray.storage.local import TEMPORARY

pytestmark = pytest.mark.usefixtures("inline_plane")


@dataclass(frozen=True)
class Job:
    """A command, the stage whose directory it changes, and the stages before it."""

    stage: str
    run: Callable[[Config], object]
    before: tuple[Callable[[Config], object], ...] = ()


def append_pairs(config: Config) -> object:
    return run_preprocess(elsewhere(config, "grown"), update=Update.APPEND)


def append_vectors(config: Config) -> object:
    return run_embed(elsewhere(config, "grown"), update=Update.APPEND)


def retry_pairs(config: Config) -> object:
    return run_preprocess(elsewhere(config, "repaired"), update=Update.RETRY)


def overwrite_pairs(config: Config) -> object:
    return run_preprocess(vary(config, recipe="fgan", preprocess={"thumbnail_px": 32}), overwrite=True)


def job_config(corpus: Path, run_uri: str) -> Config:
    """Chunks of two rows, so that a shard of three has two."""
    return corpus_config(
        corpus, data={"run_uri": run_uri}, preprocess={"chunk_rows": 2}, embed={"chunk_rows": 2}
    )


def elsewhere(config: Config, name: str) -> Config:
    """The same run over the corpus as it is later."""
    return vary(config, recipe="fgan", data={"input_uri": f"{config.data.input_uri}-{name}"})


JOBS = {
    "preprocess": Job("preprocess", run_preprocess),
    "append": Job("preprocess", append_pairs, (run_preprocess,)),
    "retry": Job("preprocess", retry_pairs, (run_preprocess,)),
    "overwrite": Job("preprocess", overwrite_pairs, (run_preprocess,)),
    "embed": Job("embed", run_embed, (run_preprocess, write_checkpoint)),
    "append-embed": Job("embed", append_vectors, (run_preprocess, write_checkpoint, run_embed, append_pairs)),
    "index": Job("index", run_index, (run_preprocess, write_checkpoint, run_embed)),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of three chunks, with rejected rows; the same with a third shard; the same with good rows for bad."""
    root = tmp_path_factory.mktemp("crash")
    write_tar(root / "shards/a.tar", good_samples(1, 3))
    write_tar(root / "shards/b.tar", good_samples(2, 1) + bad_samples()[:2])
    shutil.copytree(root / "shards", root / "shards-grown")
    write_tar(root / "shards-grown/c.tar", good_samples(3, 1))
    shutil.copytree(root / "shards", root / "shards-repaired")
    write_tar(root / "shards-repaired/b.tar", good_samples(2, 3))
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    """A directory in memory where there is one: an fsync on a disk costs more than all the rest."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as name:
        yield name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long) if name in {"overwrite", "embed", "append-embed"} else name
        for name in JOBS
    ],
)
def test_local(corpus: Path, folder: str, name: str) -> None:
    check_every_crash_point(corpus, JOBS[name], folder)


@pytest.mark.long
@pytest.mark.parametrize("name", JOBS)
def test_s3(corpus: Path, tmp_path: Path, s3_bucket: str, name: str) -> None:
    check_every_crash_point(corpus, JOBS[name], f"{s3_bucket}/{tmp_path.name}")


@pytest.mark.parametrize("name", ["overwrite", "embed", "append-embed"])
def test_some_local(corpus: Path, folder: str, name: str) -> None:
    check_every_crash_point(corpus, JOBS[name], folder, step=7)


@pytest.mark.parametrize("name", ["preprocess", "retry"])
def test_some_on_s3(corpus: Path, tmp_path: Path, s3_bucket: str, name: str) -> None:
    check_every_crash_point(corpus, JOBS[name], f"{s3_bucket}/{tmp_path.name}", step=7)


def check_every_crash_point(corpus: Path, job: Job, root: str, *, step: int = 1) -> None:
    config = job_config(corpus, f"{root}/whole")
    for stage in job.before:
        stage(config)
    prepared = Store(f"{root}/prepared")
    copy(Store(config.data.run_uri), prepared)
    with living(Life()) as undisturbed:
        job.run(config)
    expected = contents(stage_store(config, job.stage))
    old = contents(prepared.child(stage_store(config, job.stage).uri.rpartition("/")[2]))
    num_points = len(undisturbed.changes)
    points = range(0, num_points, step)
    for point in points:
        where = f"point {point} of {num_points}, {undisturbed.changes[point]}"
        crashed = vary(config, recipe="fgan", data={"run_uri": f"{root}/{point}"})
        store = stage_store(crashed, job.stage)
        copy(prepared, Store(crashed.data.run_uri))
        with pytest.raises(Died), living(Life(point)):
            job.run(crashed)
        check_visible(store, expected, old, where)
        with living(Life()):
            job.run(crashed)
        assert contents(store) == expected, where
        check_no_rest(store, where)
    print(f"{job.stage}: {len(points)} of {num_points} crash points")


def check_visible(store: Store, expected: dict[str, str], old: dict[str, str], where: str) -> None:
    """At the moment of death: every visible part is whole, and a manifest tells the truth."""
    visible = contents(store)
    for key, digest in visible.items():
        if "part-" in key and not key.startswith("_"):
            assert digest in {expected.get(key), old.get(key)}, f"{where}: {key} is wrong"
    manifest = read_manifest(store)
    if manifest is not None:
        for part in manifest.parts:
            assert visible.get(part.name) == part.sha256, f"{where}: {part.name} is not as the manifest says"


def check_no_rest(store: Store, where: str) -> None:
    """No hidden file is left on a disk either, whole or half-written."""
    if store.is_local:
        left = {path.relative_to(store.uri) for path in Path(store.uri).rglob("*") if path.is_file()}
        assert not {path for path in left if path.parts[0] in {"_staging", "_commits", "_update"}}, where
        halves = {path.name.removeprefix(TEMPORARY) for path in left if path.name.startswith(TEMPORARY)}
        # Half a note of a life that ended beside a finished manifest: some hundred bytes, swept by the next driver.
        assert not [name for name in halves if not name.startswith((STAGE_MARK, "0000"))], where


def contents(store: Store) -> dict[str, str]:
    """Hash of every file but those that nobody reads beside a manifest: leases (names, times) and the stage mark."""
    keys = [info.key for info in store.list() if not info.key.startswith((LEASES, STAGE_MARK))]
    return {key: hashlib.sha256(store.read_bytes(key)).hexdigest() for key in keys}


def copy(source: Store, target: Store) -> None:
    for info in source.list():
        target.write_bytes(info.key, source.read_bytes(info.key))


def test_a_process_that_really_ends(corpus: Path, tmp_path: Path) -> None:
    """The same with os._exit in a child, for one point: the shortcut of dying by an exception is not the reason."""
    whole, config = (job_config(corpus, str(tmp_path / name)) for name in ("whole", "killed"))
    with living(Life()) as undisturbed:
        run_preprocess(whole)
    child = os.fork()
    if child == 0:
        try:
            with storage_of(Life(len(undisturbed.changes) // 2)):
                run_preprocess(config)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert read_manifest(stage_store(config, "preprocess")) is None
    run_preprocess(config)
    assert contents(stage_store(config, "preprocess")) == contents(stage_store(whole, "preprocess"))
