"""A plane directory through its life: filled, appended to, retried, interrupted; every end is what a fresh run gives."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.dying import Died, Life, living
from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from tests.stages.numbers import digests
from tests.stages.toy_stage import Content, ToyStage
from zscmr_ray.claim import UPDATE, Update
from zscmr_ray.errors import RefusedError
from zscmr_ray.manifest import MANIFEST, read_manifest, require_manifest
from zscmr_ray.schema import part_name
from zscmr_ray.stages.plane.commit import COMMITS
from zscmr_ray.stages.plane.staging import STAGING
from zscmr_ray.stages.verify import verify_run
from zscmr_ray.storage import Store

pytestmark = pytest.mark.usefixtures("inline_plane")

BAD = Content(7, bad=frozenset({1, 5}))
GOOD = Content(7)
INPUT = {"a": Content(4), "b": BAD, "c": Content(5)}


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(tmp_path / "store")
    return Store(f"{request.getfixturevalue('s3_bucket')}/directory-{tmp_path.name}")


def fresh(tmp_path: Path, stage: ToyStage) -> dict[str, str]:
    """The files of a run over the same input in a directory of its own."""
    other = ToyStage(Store(tmp_path / f"fresh-{stage.key.input_fingerprint[:8]}"), stage.shards, stage.config)
    other.run()
    return digests(other.store)


def versions(store: Store) -> dict[str, str]:
    return {info.key: info.version for info in store.list() if info.key.startswith("part-")}


def test_an_append_adds_and_touches_nothing_else(store: Store, tmp_path: Path) -> None:
    stage = ToyStage(store, dict(INPUT))
    stage.run()
    before = versions(store)
    stage.shards |= {"0": Content(2), "z": BAD}
    with pytest.raises(RefusedError, match="--append if shards were added"):
        stage.run()
    manifest, skipped = stage.run(Update.APPEND)
    assert not skipped and manifest.counts["shards"] == 5 and manifest.counts["in"] == 25
    assert before.items() < versions(store).items()
    assert digests(store) == fresh(tmp_path, stage)
    assert stage.run(Update.APPEND) == (manifest, True) == stage.run()
    assert not (store.exists(COMMITS) or store.exists(STAGING) or store.exists(UPDATE))


def test_an_append_to_nothing_is_a_run(store: Store, tmp_path: Path) -> None:
    stage = ToyStage(store, dict(INPUT))
    stage.run(Update.APPEND)
    assert digests(store) == fresh(tmp_path, stage)


def test_changed_and_removed_shards_are_refused_by_name(tmp_path: Path) -> None:
    stage = ToyStage(Store(tmp_path / "store"), dict(INPUT))
    stage.run()
    before = digests(stage.store)
    stage.shards = {"a": Content(4, version=1), "b": BAD, "c": Content(6), "d": GOOD}
    with pytest.raises(
        RefusedError, match=r"2 shards were changed: a, c; expected.*and new ones.*--retry-rejected"
    ):
        stage.run(Update.APPEND)
    stage.shards = {"b": BAD, "d": GOOD}
    with pytest.raises(RefusedError, match="2 shards were removed: a, c"):
        stage.run(Update.APPEND)
    with pytest.raises(RefusedError, match="2 shards were removed: a, c"):
        stage.run(Update.RETRY)
    stage.shards = INPUT | {"d": GOOD}
    with pytest.raises(RefusedError, match=r"1 shards were added: d.*--append first"):
        stage.run(Update.RETRY)
    stage.shards = INPUT | {"a": Content(4, version=1)}
    with pytest.raises(RefusedError, match="changed without having rejected rows: a"):
        stage.run(Update.RETRY)
    assert digests(stage.store) == before
    stage.redo_changed = True
    stage.run(Update.RETRY)
    assert digests(stage.store) == fresh(tmp_path, stage)


def test_a_retry_does_repaired_shards_again(store: Store, tmp_path: Path) -> None:
    stage = ToyStage(store, INPUT | {"d": Content(3, bad=frozenset({0, 1, 2}))})
    stage.run()
    before = versions(store)
    stage.shards |= {"b": Content(7, bad=frozenset({5}), version=1), "d": Content(3)}
    manifest, _ = stage.run(Update.RETRY)
    assert manifest.counts["rejected"] == 1 and manifest.counts["out"] == 18
    after = versions(store)
    assert {key for key in before if before[key] == after[key]} == {part_name("a"), part_name("c")}
    assert digests(store) == fresh(tmp_path, stage)
    assert not store.exists(UPDATE) and not store.exists(f"rejected/{part_name('d')}")
    # Nothing was repaired: the same rows are rejected again, and nothing changes.
    assert stage.run(Update.RETRY)[0] == manifest
    assert digests(store) == fresh(tmp_path, stage)


def test_a_retry_without_rejects_does_nothing(tmp_path: Path) -> None:
    stage = ToyStage(Store(tmp_path), {"a": GOOD})
    manifest, _ = stage.run()
    before = versions(stage.store)
    assert stage.run(Update.RETRY) == (manifest, True)
    assert versions(stage.store) == before


def lives(place: Path, old: dict[str, Content], new: dict[str, Content], update: Update) -> Iterator[Life]:
    """A life for every change that an update of a directory makes."""
    with living(Life()) as undisturbed:
        ToyStage(Store(place), old).run()
        before = len(undisturbed.changes)
        ToyStage(Store(place), new).run(update)
    return (Life(number) for number in range(len(undisturbed.changes) - before))


@pytest.mark.parametrize("update", [Update.APPEND, Update.RETRY])
def test_whatever_kills_an_update_readers_see_the_old_or_the_new_state(
    tmp_path: Path, update: Update
) -> None:
    """At every change on disk: what a manifest says is always true, and the rerun ends in a fresh run's bytes."""
    old = {"a": Content(2), "b": Content(4, bad=frozenset({1}))}
    new = old | ({"d": Content(3, bad=frozenset({2}))} if update is Update.APPEND else {"b": Content(4)})
    expected = fresh(tmp_path, ToyStage(Store(tmp_path / "unused"), new))
    before, _ = ToyStage(Store(tmp_path / "old"), old).run()
    num_absent = 0
    for number, life in enumerate(lives(tmp_path / "rehearsal", old, new, update)):
        place = tmp_path / f"{number}"
        shutil.copytree(tmp_path / "old", place)
        with living(life), pytest.raises(Died):
            ToyStage(Store(place), new).run(update)
        found = read_manifest(Store(place))
        num_absent += found is None
        if found is not None:
            assert found == before or found.key != before.key
            (report,) = verify_run(str(place))
            assert report.violations == []
        with living(Life()):
            ToyStage(Store(place), new).run(update)
        assert digests(Store(place)) == expected, number
        # A kill may leave an empty folder, but no object.
        assert Store(place).list(UPDATE) == Store(place).list(COMMITS) == []
    # An append never takes the manifest away; a retry does while it puts the new parts in their places.
    assert (num_absent == 0) == (update is Update.APPEND)


def test_an_unfinished_append_survives_the_plain_command(tmp_path: Path) -> None:
    stage = ToyStage(Store(tmp_path / "store"), dict(INPUT))
    before, _ = stage.run()
    new = INPUT | {"x": GOOD, "y": GOOD}
    with living(Life()) as whole:
        ToyStage(Store(tmp_path / "other"), dict(INPUT)).run()
        done = len(whole.changes)
        ToyStage(Store(tmp_path / "other"), new).run(Update.APPEND)
    # Late enough that one of the two shards is committed.
    commits = [
        n for n, change in enumerate(whole.changes) if n > done and change == "rename " + part_name("x")
    ]
    with living(Life(commits[0] - done + 6)), pytest.raises(Died):
        ToyStage(stage.store, new).run(Update.APPEND)
    kept = {info.key for info in stage.store.list(COMMITS)}
    assert stage.run() == (before, True)
    assert {info.key for info in stage.store.list(COMMITS)} == kept


def test_another_configuration_takes_over_nothing(tmp_path: Path) -> None:
    """Commits of another configuration are not this one's, whatever they are named."""
    stage = ToyStage(Store(tmp_path / "store"), dict(INPUT), {"version": 1})
    with living(Life()) as whole:
        ToyStage(Store(tmp_path / "other"), dict(INPUT), {"version": 1}).run()
    with living(Life(whole.changes.index(f"rename {MANIFEST}"))), pytest.raises(Died):
        ToyStage(Store(stage.store.uri), dict(INPUT), {"version": 1}).run()
    assert stage.store.list(COMMITS) and not stage.store.exists(MANIFEST)
    stage.config = {"version": 2}
    with pytest.raises(RefusedError, match="version: 1 -> 2"):
        stage.run()
    with living(Life()):
        ToyStage(Store(stage.store.uri), dict(INPUT), {"version": 2}).run(overwrite=True)
    assert require_manifest(stage.store, "embed").config_hash == stage.key.config_hash
