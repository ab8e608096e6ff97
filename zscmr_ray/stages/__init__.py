"""The seven verbs as stages: preprocess, train, evaluate, embed, index (serving/ and client.py are the last two).

Each stage owns one directory below `data.run_uri` and speaks to the others through directories only; stages never
import each other. The only library code, with serving/, that imports ray.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from zscmr_ray.config import Config
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.lease import read_lease
from zscmr_ray.manifest import STAGE_MARK, Manifest, StageKey, read_manifest, require_manifest
from zscmr_ray.storage import Store

DIRECTORIES = {
    "preprocess": "pairs",
    "train": "checkpoint",
    "evaluate": "report",
    "embed": "embeddings",
    "index": "index",
}


@dataclass(frozen=True)
class StageResult:
    """What a stage did: its directory, its counts, and whether everything was there already."""

    stage: str
    directory: str
    skipped: bool
    counts: dict[str, int] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


def stage_store(config: Config, stage: str) -> Store:
    """The directory a stage owns in this run; pairs may be those of another run (`data.pairs_uri`)."""
    if stage == "preprocess" and config.data.pairs_uri:
        return Store(config.data.pairs_uri)
    return Store(config.data.run_uri).child(DIRECTORIES[stage])


def require_pairs(store: Store) -> Manifest:
    """The manifest of finished pairs that have images and captions; DataError for an image-only or text-only corpus."""
    manifest = require_manifest(store, "preprocess")
    modality = manifest.info.get("modality", "pairs")
    if modality != "pairs":
        raise DataError(
            "training and evaluation need images and captions",
            got=f"{store.uri} was preprocessed with data.modality={modality}",
            expected="data.modality=pairs",
            remedy="embed this corpus with a finished model: --set embed.model=<run>, or hf:<id> (`zscmr embed`)",
        )
    return manifest


def require_images(manifest: Manifest, encoders: Collection[str]) -> None:
    """Refuse pairs without the original pictures where an image encoder is trained; thumbnails never stand in."""
    kept = manifest.key.config.get("preprocess", {}).get("keep_images")
    if "image" not in encoders or kept:
        return
    raise ConfigError(
        "the image encoder is trained from pixels, and these pairs hold none",
        got="pairs of cached features and thumbnails, which are never used for pixels",
        expected="pairs made with preprocess.keep_images=true",
        remedy="zscmr preprocess --overwrite --set preprocess.keep_images=true, or model.image_blocks=0",
    )


def stage_directories(uri: str) -> dict[str, Store]:
    """The stages below a run directory, done or not, or the one whose directory it is.

    Raises DataError when it is neither.
    """
    store = Store(uri)
    stage = _stage_of(store)
    if stage is not None:
        return {stage: store}
    children = {stage: store.child(name) for stage, name in DIRECTORIES.items()}
    if not any(child.exists() for child in children.values()):
        raise DataError(
            "neither a run nor a stage's directory",
            got=store.uri,
            expected=f"a folder with {'/, '.join(DIRECTORIES.values())}/ in it, or one of these",
            remedy="check the path (data.run_uri of the run)",
        )
    return children


def _stage_of(store: Store) -> str | None:
    manifest = read_manifest(store)
    if manifest is not None:
        return manifest.key.stage
    if store.exists(STAGE_MARK):
        return StageKey.model_validate(store.read_json(STAGE_MARK)).stage
    note = read_lease(store)
    return None if note is None else note.stage
