"""Stages on S3 that fails, hangs, tears and is killed: the bytes of a quiet local run, or a clear error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.dying import Life, living
from tests.chaos.fault_proxy import Fault, FaultProxy, Plan
from tests.s3_server import ACCESS, SECRET, S3Server, environment_set, running_server
from tests.stages.corpus import bad_samples, corpus_config, good_samples, write_tar
from tests.stages.inline_executor import InlineExecutor, inline_plane  # noqa: F401  a fixture
from tests.stages.numbers import digests
from tests.stages.small_run import write_checkpoint
from zscmr_ray.config import Config
from zscmr_ray.errors import StorageError
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.index import run_index
from zscmr_ray.stages.plane import on_ray
from zscmr_ray.stages.plane.chunks import ChunkResult, Shard
from zscmr_ray.stages.plane.commit import Commits
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.storage import Store, retry

pytestmark = pytest.mark.usefixtures("inline_plane")
STAGES = ("preprocess", "embed", "index")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flaky")
    for number in range(3):
        write_tar(root / f"shards/{number}.tar", good_samples(number, 10))
    write_tar(root / "shards/bad.tar", good_samples(9, 2) + bad_samples())
    return root


def run_all(config: Config) -> dict[str, dict[str, str]]:
    """All three stages; what each of them wrote, the manifests left out (they name their input's versions)."""
    run_preprocess(config)
    write_checkpoint(config)
    run_embed(config)
    run_index(config)
    return {stage: parts(config, stage) for stage in STAGES}


def parts(config: Config, stage: str) -> dict[str, str]:
    found = digests(stage_store(config, stage))
    return {key: value for key, value in found.items() if not key.endswith("manifest.json")}


@pytest.fixture(scope="module")
def local(corpus: Path) -> dict[str, dict[str, str]]:
    """What a quiet local run writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_ray, "RayExecutor", InlineExecutor)
        return run_all(corpus_config(corpus))


def upload(corpus: Path, uri: str) -> Config:
    """The corpus there, and a configuration that reads and writes there."""
    for info in Store(corpus / "shards").list():
        Store(uri).put_file(f"shards/{info.key}", corpus / "shards" / info.key)
    return corpus_config(corpus, data={"input_uri": f"{uri}/shards", "run_uri": f"{uri}/run"})


def test_flaky_s3_changes_no_byte(
    corpus: Path,
    local: dict[str, dict[str, str]],
    proxy: FaultProxy,
    s3_bucket: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = upload(corpus, f"{s3_bucket}/flaky")
    proxy.use(Plan(seed=5, rates=dict.fromkeys(Fault, 0.02) | {Fault.HANG: 0.004}))
    assert run_all(config) == local
    assert len(proxy.injected) >= len(Fault) - 2, proxy.injected
    assert sum(proxy.injected.values()) >= 50
    proxy.use(Plan())
    shown = "".join(capfd.readouterr()) + config.model_dump_json()
    for info in Store(f"{s3_bucket}/flaky/run").list():
        shown += Store(f"{s3_bucket}/flaky/run").read_bytes(info.key).decode("latin-1")
    assert ACCESS not in shown and SECRET not in shown


def test_storage_that_stays_away_ends_the_stage_with_a_clear_error(
    corpus: Path, local: dict[str, dict[str, str]], proxy: FaultProxy, s3_bucket: str
) -> None:
    config = upload(corpus, f"{s3_bucket}/away")
    proxy.use(Plan(script=[None] * 60, always=Fault.SLOW_DOWN_503))
    # A driver whose storage is away cannot give back its lease: it is its process's end that does. Hence two lives.
    with (
        living(Life()),
        pytest.raises(StorageError, match=r"(SlowDown \(503\)|: 503); 12 attempts") as caught,
    ):
        run_preprocess(config)
    assert caught.value.exit_code == 3
    # Not every shard waits in vain for as long as the storage is given.
    assert sum(proxy.seen.values()) < 60 + 30 * 12
    proxy.use(Plan())
    with living(Life()):
        run_preprocess(config)
    assert parts(config, "preprocess") == local["preprocess"]


class Interrupted(InlineExecutor):
    """Calls `event` at its second commit."""

    event: Callable[[], None]
    num_begun = 0

    def begin_commits(self, to: Commits, work: list[tuple[Shard, list[ChunkResult]]]) -> None:
        Interrupted.num_begun += 1
        if Interrupted.num_begun == 2:
            Interrupted.event()
        super().begin_commits(to, work)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> type[Interrupted]:
    Interrupted.num_begun = 0
    monkeypatch.setattr(on_ray, "RayExecutor", Interrupted)
    return Interrupted


@pytest.fixture(scope="module")
def mortal_server() -> Iterator[S3Server]:
    """A server of this module's own, for killing."""
    with running_server() as server, environment_set(server.environment):
        server.make_bucket("mortal")
        yield server


def test_a_server_killed_and_restarted_is_waited_for(
    corpus: Path, local: dict[str, dict[str, str]], mortal_server: S3Server, interrupted: type[Interrupted]
) -> None:
    config = upload(corpus, "s3://mortal/waited")
    restart = threading.Thread(target=lambda: (time.sleep(1), mortal_server.start()))
    interrupted.event = lambda: (mortal_server.kill(), restart.start())  # type: ignore[assignment, return-value]
    run_preprocess(config)
    restart.join()
    # Two small shards may share a task of commits: the first went before the kill, the second met it, others followed.
    assert interrupted.num_begun >= 3
    assert parts(config, "preprocess") == local["preprocess"]


def test_a_server_that_is_gone_ends_the_stage_and_the_same_command_finishes(
    corpus: Path,
    local: dict[str, dict[str, str]],
    mortal_server: S3Server,
    interrupted: type[Interrupted],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = upload(corpus, "s3://mortal/gone")
    interrupted.event = mortal_server.kill  # type: ignore[assignment]
    with monkeypatch.context() as patch:
        patch.setattr(retry, "POLICY", retry.RetryPolicy(first_wait_s=0.01, max_wait_s=0.02))
        with living(Life()), pytest.raises(StorageError, match="storage") as caught:
            run_preprocess(config)
    assert "same command" in str(caught.value.remedy)
    assert SECRET not in str(caught.value)
    mortal_server.start()
    with living(Life()):
        run_preprocess(config)
    assert parts(config, "preprocess") == local["preprocess"]
