"""The seven verbs as stages: preprocess, train, evaluate, embed, index (serving/ and client.py are the last two).

Each stage owns one directory below `data.run_uri` and speaks to the others through directories only; stages never
import each other. The only library code, with serving/, that imports ray.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from zscmr_ray.config import Config
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
