"""What `zscmr status` says of a directory: to do, running, failed, done, and how far; on a local disk and on S3."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from tests.stages.toy_stage import Content, ToyStage
from zscmr_ray import lease as leases
from zscmr_ray.claim import Update
from zscmr_ray.errors import DataError
from zscmr_ray.lease import LEASES, read_lease, take_lease
from zscmr_ray.manifest import STAGE_MARK
from zscmr_ray.stages import DIRECTORIES
from zscmr_ray.stages.status import read_status, stage_status, status_lines
from zscmr_ray.storage import Store

pytestmark = pytest.mark.usefixtures("inline_plane")
INPUT = {"a": Content(4), "b": Content(7, bad=frozenset({1, 5})), "c": Content(5)}


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(tmp_path / "run")
    return Store(f"{request.getfixturevalue('s3_bucket')}/status-{tmp_path.name}")


def rewrite(store: Store, **changes: object) -> None:
    note = read_lease(store)
    assert note is not None
    changed = note.model_copy(update=changes)
    store.write_json(f"{LEASES}/{note.epoch:08d}.json", changed.model_dump())


def test_a_run_and_a_stage_of_it(run: Store) -> None:
    stage = ToyStage(run.child("embeddings"), dict(INPUT))
    stage.run()
    found = read_status(run.uri)
    assert [one.stage for one in found] == list(DIRECTORIES)
    assert [one.state for one in found] == ["to do", "to do", "to do", "done", "to do"]
    (alone,) = read_status(stage.store.uri)
    assert alone == found[3]
    assert (alone.num_shards, alone.num_rows, alone.rows_rejected) == (3, 16, 2)
    assert status_lines(alone) == ["embed      done     3 shards, 16 rows, 2 rejected"]
    with pytest.raises(DataError, match="neither a run nor a stage"):
        read_status(f"{run.uri}/elsewhere")


def test_a_running_stage_says_how_far_and_how_long(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "NOTE_S", 0.0)
    with take_lease(run, "embed") as lease:
        lease.report(
            num_shards=10, shards_done=3, shards_failed=1, rows_done=300, num_rows=1000, rows_per_s=35.0
        )
        found = stage_status(run, "embed")
        assert (found.state, found.shards_done, found.rows_done, found.left_s) == ("running", 3, 300, 20.0)
        first, second = status_lines(found)
        assert first == (
            "embed      running  3/10 shards, 300/1,000 rows, 1 shards failed, 35.0 rows/s, 20 s left"
        )
        assert lease.note.holder in second
        assert found.as_json()["holder"] == lease.note.holder and "problem" not in found.as_json()


def test_failed_and_killed_stages_say_why(run: Store) -> None:
    with pytest.raises(DataError), take_lease(run, "embed"):
        raise DataError("1 of 3 shards could not be done", got="b.tar (truncated)")
    found = stage_status(run, "embed")
    assert (found.state, found.problem) == (
        "failed",
        "1 of 3 shards could not be done; got: b.tar (truncated)",
    )
    take_lease(run, "embed")
    # Killed on another machine: alive as far as one can see, until it has not been heard of for too long.
    rewrite(run, process="boot/pid:[1] 1 1", host="far")
    assert stage_status(run, "embed").state == "running"
    rewrite(run, renewed_s=time.time() - 31)
    found = stage_status(run, "embed")
    assert found.state == "failed" and "killed?" in str(found.problem)
    assert "the same command goes on" in status_lines(found)[-1]


def test_a_directory_without_a_lease_but_with_an_owner_has_failed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert stage_status(store, "train").state == "to do"
    store.write_json(STAGE_MARK, {})
    assert stage_status(store, "train").state == "failed"


def test_an_update_that_failed_leaves_the_stage_done(run: Store) -> None:
    stage = ToyStage(run, dict(INPUT))
    stage.run()
    stage.shards |= {"d": Content(3)}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError):
        patch.setattr("zscmr_ray.stages.plane.directory.run_plane", _broken)
        stage.run(Update.APPEND)
    found = stage_status(run, "embed")
    assert (found.state, found.update, found.num_shards) == ("done", "append", 3)
    assert "--append of" in status_lines(found)[1] and "the disk is full" in status_lines(found)[1]
    stage.run(Update.APPEND)
    assert stage_status(run, "embed").problem is None


def _broken(*_: object, **__: object) -> None:
    raise DataError("the disk is full")
