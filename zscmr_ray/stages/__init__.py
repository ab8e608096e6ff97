"""The seven verbs as stages: preprocess, train, evaluate, embed, index (serving/ and client.py are the last two).

Each stage owns one directory below `data.run_uri` and speaks to the others through directories only; stages never
import each other. The only library code, with serving/, that imports ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from zscmr_ray.config import Config
from zscmr_ray.errors import DataError
from zscmr_ray.manifest import Manifest, require_manifest
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
