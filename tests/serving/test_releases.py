"""Releases: what is frozen, which one is live, what never goes live, and the way back."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.embeddings_run import FINGERPRINT, run_config, unit_vectors, write_embeddings
from tests.serving.conftest import FakeEncoder
from zscmr_ray.cli.service import change_live
from zscmr_ray.config import Config, ServeSection
from zscmr_ray.errors import ConfigError, DataError, RefusedError
from zscmr_ray.manifest import require_manifest
from zscmr_ray.serving import releases as releases_module
from zscmr_ray.serving import version as version_module
from zscmr_ray.serving.encoding import EncoderPool
from zscmr_ray.serving.live import LiveIndexes
from zscmr_ray.serving.metrics import Metrics, exposition
from zscmr_ray.serving.problems import ProblemError
from zscmr_ray.serving.releases import Releases, ensure_released, publish, rollback
from zscmr_ray.serving.service import SearchService
from zscmr_ray.serving.shelf import Shelf
from zscmr_ray.serving.version import load_version
from zscmr_ray.serving.wire import Query, SearchRequest
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.index import run_index


def build_index(config: Config, *, seed: int) -> str:
    """An index of 6 captions drawn from a seed; returns its version."""
    for name in ("embeddings", "index"):
        shutil.rmtree(Path(config.data.run_uri) / name, ignore_errors=True)
    write_embeddings(
        config, num_items=6, sides=["text"], captions_per_item=1, vectors={"text": unit_vectors(6, seed=seed)}
    )
    run_index(config)
    return require_manifest(stage_store(config, "index"), "index").fingerprint


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A run whose model is the fake encoder, so that releases are of the index alone."""
    config = run_config(tmp_path)
    monkeypatch.setattr(releases_module, "served_model", lambda config, index: None)
    monkeypatch.setattr(Releases, "model_place", lambda self, release: None)
    monkeypatch.setattr(version_module, "load_encoder", lambda *_: FakeEncoder())
    return config


@pytest.fixture
def live(run: Config) -> Iterator[tuple[LiveIndexes, SearchService, Metrics]]:
    build_index(run, seed=1)
    ensure_released(run)
    found, settings, metrics = {"default": Releases(run.data.run_uri)}, ServeSection(), Metrics()
    pool = EncoderPool(settings, metrics)
    shelf = Shelf(
        found,
        lambda name, release: load_version(name, found[name], release, pool, settings, metrics),
        lambda *_: 0,
    )
    indexes = LiveIndexes(found, shelf, metrics)
    indexes.open()
    yield indexes, SearchService(indexes, settings, metrics), metrics
    indexes.close()


def asked(service: SearchService) -> str:
    request = SearchRequest(query=Query(text="caption 0 of item 1"), target="text", k=1)
    return asyncio.run(service.search(request)).index_version


def test_a_release_outlives_the_index_it_was_made_of(run: Config) -> None:
    first = build_index(run, seed=1)
    ensure_released(run)
    releases = Releases(run.data.run_uri)
    alias = releases.require_alias()
    assert releases.read(alias.live).index_version == first
    assert releases.read(alias.live).model_fingerprint == FINGERPRINT
    second = build_index(run, seed=2)
    assert publish(run).index_version == second
    frozen = releases.index_store(releases.read(alias.live))
    releases_module.check_files(frozen, require_manifest(frozen, "index"))
    assert releases.require_alias().former == (alias.live,)
    # Once more is the same release.
    assert publish(run).index_version == second
    assert releases.require_alias().former == (alias.live,)


def test_a_restart_serves_what_was_built_since_and_does_not_undo_a_rollback(run: Config) -> None:
    versions = [build_index(run, seed=1)]
    ensure_released(run)
    versions.append(build_index(run, seed=2))
    ensure_released(run)
    releases = Releases(run.data.run_uri)
    assert releases.read(releases.require_alias().live).index_version == versions[1]
    assert rollback(run).index_version == versions[0]
    ensure_released(run)
    assert releases.read(releases.require_alias().live).index_version == versions[0]
    # Of two releases the second rollback is the way forward.
    assert rollback(run).index_version == versions[1]


def test_only_so_many_releases_are_kept(run: Config) -> None:
    for seed in range(5):
        build_index(run, seed=seed)
        publish(run)
    alias = Releases(run.data.run_uri).require_alias()
    assert len(alias.former) == run.serve.keep_releases - 1
    folders = {path.name for path in (Path(run.data.run_uri) / "releases").iterdir() if path.is_dir()}
    assert folders == {alias.live, *alias.former}


def test_what_is_damaged_is_not_published(run: Config) -> None:
    build_index(run, seed=1)
    ensure_released(run)
    before = Releases(run.data.run_uri).require_alias()
    build_index(run, seed=2)
    path = Path(run.data.run_uri) / "index" / "text" / "vectors.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"vectors\.npy"):
        publish(run)
    assert Releases(run.data.run_uri).require_alias() == before
    with pytest.raises(RefusedError, match="no release to roll back to"):
        rollback(run)


def test_a_new_release_goes_live_and_back_without_a_restart(
    run: Config, live: tuple[LiveIndexes, SearchService, Metrics]
) -> None:
    indexes, service, metrics = live
    first = asked(service)
    second = build_index(run, seed=2)
    publish(run)
    # Pinned before the change, a request stays with its version until it ends.
    with indexes.pinned("default") as pinned:
        indexes.refresh()
        assert pinned.searcher.version == first
    assert asked(service) == second
    rollback(run)
    indexes.refresh()
    assert asked(service) == first
    page = exposition({"r": metrics.snapshot()}).decode()
    assert page.count("zscmr_index_live{") == 1
    assert f'version="{first}"' in page
    assert 'zscmr_index_swaps_total{index="default",replica="r",result="live"} 3.0' in page


def test_a_damaged_release_is_refused_and_the_last_good_one_stays(
    run: Config, live: tuple[LiveIndexes, SearchService, Metrics]
) -> None:
    indexes, service, metrics = live
    first = asked(service)
    build_index(run, seed=2)
    bad = publish(run)
    path = Path(run.data.run_uri) / "releases" / bad.id / "index" / "text" / "vectors.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    for _ in range(2):
        indexes.refresh()
    assert asked(service) == first
    assert "vectors.npy" in str(service.indexes()[0].problem)
    assert b'result="refused"} 1.0' in exposition({"r": metrics.snapshot()})
    # A replica that starts now falls back to the last good one and says so.
    again = LiveIndexes(indexes._releases, indexes._shelf, Metrics())
    again.open()
    assert again.problem("default") is not None
    rollback(run)
    indexes.refresh()
    assert service.indexes()[0].problem is None


def test_a_release_of_another_model_is_refused(
    run: Config, live: tuple[LiveIndexes, SearchService, Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    indexes, service, _ = live
    first = asked(service)

    class Other(FakeEncoder):
        fingerprint = "cd" * 32

    monkeypatch.setattr(version_module, "load_encoder", lambda *_: Other())
    fingerprints = ("ef" * 32, "ef" * 32)
    for name in ("embeddings", "index"):
        shutil.rmtree(Path(run.data.run_uri) / name)
    write_embeddings(run, num_items=6, sides=["text"], fingerprints=fingerprints)
    run_index(run)
    publish(run)
    indexes.refresh()
    assert asked(service) == first
    assert "cd" * 32 in str(indexes.problem("default"))


def test_at_most_two_versions_are_held_and_a_pinned_one_is_closed_last(
    run: Config, live: tuple[LiveIndexes, SearchService, Metrics]
) -> None:
    indexes, service, _ = live
    shelf = indexes._shelf
    (first,) = shelf.versions("default")
    with shelf.pinned("default", first):
        for seed in (2, 3):
            build_index(run, seed=seed)
            publish(run)
            indexes.refresh()
        assert len(shelf.versions("default")) == 2
        assert first not in shelf.versions("default")
    assert asked(service)


def test_no_memory_for_a_second_version_keeps_the_first(
    run: Config, live: tuple[LiveIndexes, SearchService, Metrics]
) -> None:
    indexes, service, _ = live
    first = asked(service)
    build_index(run, seed=2)
    publish(run)
    indexes._shelf._need_bytes = lambda *_: 1 << 60
    indexes.refresh()
    assert asked(service) == first
    assert "no memory for a second version" in str(indexes.problem("default"))


def test_an_unknown_index_is_refused(live: tuple[LiveIndexes, SearchService, Metrics]) -> None:
    _, service, _ = live
    with pytest.raises(ProblemError, match="no such index"):
        asyncio.run(service.search(SearchRequest(query=Query(text="a"), index="other")))
    assert np.isfinite(service.busy_s())


def test_the_command_changes_what_is_live_and_says_so(
    run: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = build_index(run, seed=1)
    change_live(run, reload=True, reload_from=None, rollback=False)
    other = run_config(tmp_path / "other")
    second = build_index(other, seed=2)
    change_live(run, reload=True, reload_from=other.data.run_uri, rollback=False)
    change_live(run, reload=False, reload_from=None, rollback=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("live: ")]
    assert [line.split("index ")[1][:12] for line in lines] == [first[:12], second[:12], first[:12]]
    with pytest.raises(ConfigError, match="one change"):
        change_live(run, reload=True, reload_from=None, rollback=True)
    with pytest.raises(ConfigError, match="--from"):
        change_live(run, reload=False, reload_from="x", rollback=False)
