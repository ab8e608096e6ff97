"""What an index says of itself: its segments, and the manifest they add up to.

image/..., text/...                             segment 0
image/segment-00001/..., text/segment-00001/... the next ones; numbers only grow, files are never replaced
deleted/<hash>.arrow                            side, segment and id of every deleted row, where there are any
manifest.json                                   last: a reader sees one version, whole
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from zscmr_ray.config.operator import OWN_CHECKPOINT
from zscmr_ray.errors import RefusedError
from zscmr_ray.manifest import Manifest, PartRecord, StageKey

SIDES = ("image", "text")
DELETED = "deleted"
DELETED_SCHEMA = pa.schema([(name, pa.string()) for name in ("side", "id")] + [("segment", pa.int64())])


@dataclass(frozen=True, slots=True)
class IndexedBlock:
    """A named range of a vector's columns (the models' own class would import torch, which nothing here needs)."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class VectorFacts:
    """What the embeddings say of all their vectors."""

    fingerprint: str
    blocks: tuple[IndexedBlock, ...]

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.blocks[-1].stop


class SegmentRecord(BaseModel):
    """One segment: the embedding parts it was made of (name -> sha256), its rows, kinds and recall, its files.

    `recall_at_10` is direction -> label weight -> recall on held-out queries; of a flat side it is a check.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    sources: dict[str, str]
    rows: dict[str, int]
    kinds: dict[str, dict[str, Any]]
    recall_at_10: dict[str, dict[str, float]]
    parts: list[PartRecord] = Field(default_factory=list)


def segment_folder(side: str, number: int) -> str:
    """The directory of a side of a segment.

    >>> segment_folder("image", 0), segment_folder("text", 12)
    ('image', 'text/segment-00012')
    """
    return side if number == 0 else f"{side}/segment-{number:05d}"


def segments_of(manifest: Manifest) -> list[SegmentRecord]:
    """The segments of a finished index with their files; RefusedError for one of an earlier version."""
    described = manifest.info.get("segments")
    if described is None:
        raise RefusedError(
            "this index was built by an earlier version and cannot be changed",
            got="a manifest without segments",
            remedy="run `zscmr index --overwrite`",
        )
    records = []
    for one in described:
        folders = {segment_folder(side, int(one["number"])) for side in SIDES}
        files = [part for part in manifest.parts if part.name.rpartition("/")[0] in folders]
        records.append(SegmentRecord(**one, parts=files))
    return records


def index_manifest(
    key: StageKey,
    segments: Sequence[SegmentRecord],
    facts: VectorFacts,
    *,
    source: Mapping[str, Any],
    deleted: PartRecord | None = None,
    num_deleted: Mapping[str, int] | None = None,
) -> Manifest:
    """The manifest over segments, less the rows deleted from them; `source` is what the embeddings said of their model."""
    gone = dict(num_deleted or {})
    recall = _weakest(segments)
    return Manifest(
        key=key,
        config_hash=key.config_hash,
        counts={side: sum(one.rows.get(side, 0) for one in segments) - gone.get(side, 0) for side in SIDES},
        parts=sorted(
            [part for one in segments for part in one.parts] + ([deleted] if deleted else []),
            key=lambda part: part.name,
        ),
        info={
            "kind": "+".join(sorted({kind["kind"] for one in segments for kind in one.kinds.values()})),
            "fingerprint": facts.fingerprint,
            "dimension": facts.dimension,
            "blocks": [{"name": b.name, "start": b.start, "stop": b.stop} for b in facts.blocks],
            # Of the weakest segment and label weight; each one's own numbers are in `segments`.
            "recall_at_10": {direction: min(by_weight.values()) for direction, by_weight in recall.items()},
            "segments": [one.model_dump(exclude={"parts"}) for one in segments],
            "deleted": gone,
            # Which model the service loads for queries (older embeddings are the run's checkpoint's), what it sees.
            "model": str(source.get("model", OWN_CHECKPOINT)),
            "crop": source.get("crop"),
        },
    )


def facts_of(manifest: Manifest) -> VectorFacts:
    """The vectors' facts of a finished index."""
    blocks = tuple(IndexedBlock(b["name"], int(b["start"]), int(b["stop"])) for b in manifest.info["blocks"])
    return VectorFacts(str(manifest.info["fingerprint"]), blocks)


def _weakest(segments: Sequence[SegmentRecord]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for one in segments:
        for direction, by_weight in one.recall_at_10.items():
            row = found.setdefault(direction, {})
            for weight, recall in by_weight.items():
                row[weight] = min(recall, row.get(weight, 1.0))
    return dict(sorted(found.items()))
