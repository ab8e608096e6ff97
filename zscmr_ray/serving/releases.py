"""Releases of a run: an index and the model that made it, frozen together, and the alias that says which one is live.

    releases/<id>/index/        the files of index/ (local: hard links, which a later `zscmr index` does not touch)
    releases/<id>/checkpoint/   the model's files, unless it is a pretrained one
    releases/<id>/release.json  Release, written last
    releases/alias.json         Alias: live, former ones newest first; replaced atomically, watched by every replica

What it is: `publish`, `rollback` and reading, for whoever changes what is live. What it is not: loading (shelf.py) or
the watching (live.py). An id is `<index version>-<model fingerprint>`, 12 characters of each: what was published twice is
one release.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from zscmr_ray.config import Config
from zscmr_ray.config.operator import OWN_CHECKPOINT
from zscmr_ray.config.serving import DEFAULT_INDEX
from zscmr_ray.engine.checkpoint import FILES as CHECKPOINT_FILES
from zscmr_ray.engine.checkpoint import read_meta
from zscmr_ray.engine.vector_model import ModelPlace, find_model, read_facts
from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.manifest import MANIFEST, Manifest, require_manifest
from zscmr_ray.schema import FOREIGN_MODEL
from zscmr_ray.serving.searcher import check_same_model
from zscmr_ray.stages import stage_store
from zscmr_ray.storage import Store

DIRECTORY = "releases"
ALIAS, RELEASE = "alias.json", "release.json"
Described = TypeVar("Described", bound=BaseModel)


class Release(BaseModel):
    """One frozen pair of index and model. `model` is a place as `embed.model` names it; `checkpoint` = the one inside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    index_version: str
    model_fingerprint: str
    model: str


class Alias(BaseModel):
    """Which release is live, the former ones (newest first), and every index version that was ever published here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    live: str
    former: tuple[str, ...] = ()
    published: tuple[str, ...] = ()


class Releases:
    """The releases of one run."""

    def __init__(self, run_uri: str) -> None:
        self.store = Store(run_uri).child(DIRECTORY)

    def alias(self) -> Alias | None:
        """What is live, or None before the first release; DataError when the file is damaged."""
        if not self.store.exists(ALIAS):
            return None
        return _parse(Alias, self.store, ALIAS)

    def require_alias(self) -> Alias:
        """What is live; DataError before the first release."""
        alias = self.alias()
        if alias is None:
            raise DataError(
                "nothing was released yet",
                got=f"no {ALIAS} in {self.store.uri}",
                remedy="run `zscmr serve` once",
            )
        return alias

    def read(self, release_id: str) -> Release:
        """A release's description; DataError when it is gone or damaged."""
        return _parse(Release, self.store, f"{release_id}/{RELEASE}")

    def index_store(self, release: Release) -> Store:
        """Where a release's index is."""
        return self.store.child(release.id).child("index")

    def model_place(self, release: Release) -> ModelPlace | None:
        """Where a release's model is; None for vectors of another program."""
        if release.model.startswith(FOREIGN_MODEL):
            return None
        return find_model(release.model, own=self.store.child(release.id).child("checkpoint"))

    def point_to(self, alias: Alias) -> None:
        """Replace the alias atomically."""
        self.store.write_json(ALIAS, alias.model_dump(mode="json"))


def index_runs(config: Config) -> dict[str, str]:
    """Every index that is served: its name and the run it is in, `default` first."""
    return {DEFAULT_INDEX: Store(config.data.run_uri).uri} | {
        name: Store(uri).uri for name, uri in config.serve.indexes.items()
    }


def run_of(config: Config, run_uri: str) -> Config:
    """The configuration of another run that is served beside this one; its index says which model it needs."""
    if Store(run_uri).uri == Store(config.data.run_uri).uri:
        return config
    data = config.data.model_copy(update={"run_uri": run_uri})
    embed = config.embed.model_copy(update={"model": OWN_CHECKPOINT})
    return config.model_copy(update={"data": data, "embed": embed})


def ensure_released(config: Config) -> None:
    """Publish what has an index but no release yet, and an index that was built since the last one.

    A version that was live before stays as it is: a restart does not undo a rollback.
    """
    for run_uri in index_runs(config).values():
        index = require_manifest(stage_store(run_of(config, run_uri), "index"), "index")
        alias = Releases(run_uri).alias()
        run = run_of(config, run_uri)
        if alias is None or index.fingerprint not in alias.published or run.embed.model != OWN_CHECKPOINT:
            publish(run, verify=False)


def publish(config: Config, *, source: Config | None = None, verify: bool = True) -> Release:
    """Freeze the index and model of `source` (default: this run's) and make them live in this run.

    `verify` reads every checksum before anything changes. Raises DataError (incomplete, damaged) or RefusedError (index
    and model differ); what is live then stays.
    """
    source = source or config
    index, place = check_servable(source)
    origin = stage_store(source, "index")
    if verify:
        check_files(origin, index)
    releases = Releases(config.data.run_uri)
    release = _freeze(releases, origin, index, place)
    alias = releases.alias()
    former = () if alias is None else tuple(x for x in (alias.live, *alias.former) if x != release.id)
    published = {index.fingerprint, *(alias.published if alias else ())}
    keep = config.serve.keep_releases - 1
    releases.point_to(Alias(live=release.id, former=former[:keep], published=tuple(sorted(published))))
    for gone in former[keep:]:
        releases.store.delete_tree(gone)
    return release


def rollback(config: Config) -> Release:
    """Make the release before the live one live again; what was live stays on disk. RefusedError when there is none."""
    releases = Releases(config.data.run_uri)
    alias = releases.require_alias()
    if not alias.former:
        raise RefusedError(
            "there is no release to roll back to",
            got=f"only {alias.live}",
            expected="a former release (serve.keep_releases keeps them)",
        )
    release = releases.read(alias.former[0])
    check_files(releases.index_store(release), require_manifest(releases.index_store(release), "index"))
    # Last: a second rollback goes one further back, and with two releases forward again.
    former = (*alias.former[1:], alias.live)
    releases.point_to(alias.model_copy(update={"live": release.id, "former": former}))
    return release


def check_servable(config: Config) -> tuple[Manifest, ModelPlace | None]:
    """Refuse in a moment, before anything is loaded, what could not be served: DataError or RefusedError.

    A pretrained model's fingerprint is known when it is loaded: loading checks it then. No place: vectors of another
    program, which nothing here can encode queries for.
    """
    index = require_manifest(stage_store(config, "index"), "index")
    place = served_model(config, index)
    if place is None:
        return index, None
    if place.name == OWN_CHECKPOINT:
        require_manifest(stage_store(config, "train"), "train")
    if place.checkpoint is not None:
        check_same_model(read_meta(place.checkpoint).fingerprint, str(index.info["fingerprint"]))
    return index, place


def served_model(config: Config, index: Manifest) -> ModelPlace | None:
    """The model that encodes queries: `embed.model` where it is set, else the one the index names (None: foreign)."""
    name = config.embed.model
    if name == OWN_CHECKPOINT:
        name = str(index.info.get("model", OWN_CHECKPOINT))
    if name.startswith(FOREIGN_MODEL):
        return None
    return find_model(name, own=stage_store(config, "train"))


def check_files(store: Store, index: Manifest) -> None:
    """Read every file of an index and compare its checksum; DataError names the first that differs."""
    for part in index.parts:
        if store.sha256(part.name) != part.sha256:
            raise DataError(
                "an index file is not the one its manifest describes",
                got=f"{store.uri}/{part.name}",
                expected=f"sha256 {part.sha256[:12]}",
                remedy="run `zscmr index --overwrite`",
            )


def _freeze(releases: Releases, origin: Store, index: Manifest, place: ModelPlace | None) -> Release:
    fingerprint = str(index.info["fingerprint"])
    release_id = f"{index.fingerprint[:12]}-{fingerprint[:12]}"
    folder = releases.store.child(release_id)
    name = str(index.info.get("model", OWN_CHECKPOINT)) if place is None else place.name
    has_checkpoint = place is not None and place.checkpoint is not None
    known = str(index.info.get("model"))
    if folder.exists(RELEASE):
        release = releases.read(release_id)
        if has_checkpoint or release.model == name:
            return release
        known = release.model
    else:
        _copy(origin, folder.child("index"), [part.name for part in index.parts] + [MANIFEST])
    if place is not None and not has_checkpoint and name != known:
        # The same vectors, said to be of a model at another place: is it the same model?
        check_same_model(read_facts(place).fingerprint, fingerprint)
    if place is not None and place.checkpoint is not None:
        name = OWN_CHECKPOINT
        _copy(place.checkpoint, folder.child("checkpoint"), CHECKPOINT_FILES)
    release = Release(
        id=release_id, index_version=index.fingerprint, model_fingerprint=fingerprint, model=name
    )
    folder.write_json(RELEASE, release.model_dump(mode="json"))
    return release


def _copy(source: Store, target: Store, names: Iterable[str]) -> None:
    for name in names:
        if source.is_local and target.is_local and _linked(source.path(name), target.path(name)):
            continue
        with source.local_copy(name) as path:
            target.put_file(name, path)


def _linked(source: str, target: str) -> bool:
    """Whether a hard link could be made; another file system, or one without links, takes a copy."""
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.hardlink_to(source)
    except FileExistsError:
        path.unlink()
        return _linked(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def _parse(model: type[Described], store: Store, key: str) -> Described:
    try:
        return model.model_validate(store.read_json(key))
    except ValidationError as error:
        raise DataError(
            "a release's file is damaged", got=f"{store.uri}/{key}: {error.error_count()} wrong fields"
        ) from error
