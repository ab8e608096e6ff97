"""Embeddings to an index: `index/{image,text}/` in id order, with its recall measured per query direction.

What it is: the check that every part has one model fingerprint and every id occurs once, the writing of both sides
(retrieval/gallery.py) and the manifest last. Either side may be absent. What it is not: sharded or approximate; one
process reads the parts in turn, in memory bounded by one part and the rows' ids, labels and captions.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.claim import open_stage
from zscmr_ray.config import Config
from zscmr_ray.config.operator import OWN_CHECKPOINT
from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.manifest import (
    Manifest,
    PartRecord,
    StageKey,
    part_record,
    require_manifest,
)
from zscmr_ray.progress import Progress
from zscmr_ray.retrieval.exact import recall_at_k
from zscmr_ray.retrieval.gallery import Gallery, gallery_files, write_gallery
from zscmr_ray.retrieval.scoring import LABEL, has_block, weigh_query
from zscmr_ray.schema import provenance_of
from zscmr_ray.stages import StageResult, stage_store
from zscmr_ray.storage import Store

SIDES = ("image", "text")
RECALL_K = 10
# Even over the rows, so that the sample is the same on every machine.
RECALL_QUERIES = 100
# Recall is measured with both blocks in play; an exact index has no favourite.
RECALL_LABEL_WEIGHT = 0.5


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


def run_index(config: Config, *, overwrite: bool = False) -> StageResult:
    """Build the index of a run's embeddings, or return at once when it is there.

    Raises DataError for missing or torn embeddings and for ids that occur twice, RefusedError (naming both) when
    parts come from different models or the directory holds another index.
    """
    source, target = stage_store(config, "embed"), stage_store(config, "index")
    embeddings = require_manifest(source, "embed")
    key = StageKey(
        stage="index", config=config.stage_config("index"), input_fingerprint=embeddings.fingerprint
    )
    with open_stage(target, key, overwrite=overwrite) as claim:
        if claim.complete is not None:
            return _result(target, claim.complete, skipped=True)
        manifest = _build(config, source, target, embeddings, key)
        claim.finish(manifest)
    return _result(target, manifest, skipped=False)


def _build(config: Config, source: Store, target: Store, embeddings: Manifest, key: StageKey) -> Manifest:
    parts = {side: [part for part in embeddings.parts if _side(part) == side and part.rows] for side in SIDES}
    facts = _one_model(source, [part for side in SIDES for part in parts[side]])
    with tempfile.TemporaryDirectory(prefix="zscmr-index-") as scratch:
        counts = _write_sides(source, target, parts, facts=facts, scratch=Path(scratch))
        recall = _measure_recall(Path(scratch), [side for side in SIDES if parts[side]], facts)
        files = {side: sorted(gallery_files(Path(scratch) / side)) for side in SIDES if parts[side]}
    return Manifest(
        key=key,
        config_hash=key.config_hash,
        counts=counts,
        parts=[
            part_record(target, f"{side}/{name}", rows=counts[side])
            for side, names in files.items()
            for name in names
        ],
        info={
            "kind": config.index.kind,
            "fingerprint": facts.fingerprint,
            "dimension": facts.dimension,
            "blocks": [{"name": b.name, "start": b.start, "stop": b.stop} for b in facts.blocks],
            "recall_at_10": recall,
            "recall_queries": RECALL_QUERIES,
            # Which model the service loads for queries; older embeddings are the run's checkpoint's.
            "model": embeddings.info.get("model", OWN_CHECKPOINT),
            "crop": embeddings.info.get("crop"),
        },
    )


def _result(target: Store, manifest: Manifest, *, skipped: bool) -> StageResult:
    return StageResult(
        stage="index",
        directory=target.uri,
        skipped=skipped,
        counts=manifest.counts,
        info=manifest.info | {"index_version": manifest.fingerprint},
    )


def _side(part: PartRecord) -> str:
    return part.name.partition("/")[0]


def _one_model(source: Store, parts: list[PartRecord]) -> VectorFacts:
    """The one fingerprint and block layout of all parts, from their metadata."""
    if not parts:
        raise DataError(
            "there is nothing to index",
            got=f"no image or text part in {source.uri}",
            remedy="run `zscmr embed` on a corpus with rows",
        )
    first: VectorFacts | None = None
    for part in parts:
        facts = _facts(source, part)
        if first is not None and facts.fingerprint != first.fingerprint:
            raise RefusedError(
                "the embeddings come from different models and cannot be searched together",
                got=f"{part.name}: {facts.fingerprint}",
                expected=f"{parts[0].name}: {first.fingerprint}",
                remedy="embed again into one directory with one checkpoint (`zscmr embed --overwrite`)",
            )
        first = first or facts
    assert first is not None
    return first


def _facts(source: Store, part: PartRecord) -> VectorFacts:
    with source.open(part.name) as file:
        provenance: Mapping[str, Any] = provenance_of(pq.read_schema(file))
    try:
        blocks = tuple(IndexedBlock(b["name"], int(b["start"]), int(b["stop"])) for b in provenance["blocks"])
        return VectorFacts(fingerprint=str(provenance["fingerprint"]), blocks=blocks)
    except (KeyError, TypeError) as error:
        raise DataError(
            "a part does not say which model made it",
            got=f"{source.uri}/{part.name}: no fingerprint or blocks in its metadata",
            remedy="run `zscmr embed --overwrite`",
        ) from error


def _write_sides(
    source: Store,
    target: Store,
    parts: Mapping[str, list[PartRecord]],
    *,
    facts: VectorFacts,
    scratch: Path,
) -> dict[str, int]:
    counts = dict.fromkeys(SIDES, 0)
    total = sum(part.rows for side in SIDES for part in parts[side])
    with Progress("index", total=total, unit="rows") as progress:
        captions: dict[str, list[str]] = {}
        # Texts first: an image's captions are shown beside it and live in the text table only.
        for side in reversed(SIDES):
            if not parts[side]:
                continue
            tables = _tables(source, parts[side], captions if side == "text" else None, progress)
            counts[side] = write_gallery(scratch / side, tables, dimension=facts.dimension, captions=captions)
            expected = sum(part.rows for part in parts[side])
            if counts[side] != expected:
                raise DataError(
                    f"rows of {side} were lost",
                    got=counts[side],
                    expected=f"{expected} (embeddings/manifest.json)",
                )
            for name in gallery_files(scratch / side):
                target.put_file(f"{side}/{name}", scratch / side / name)
    return counts


def _tables(
    source: Store, parts: list[PartRecord], captions: dict[str, list[str]] | None, progress: Progress
) -> Iterator[pa.Table]:
    """Each part's table, checksum verified; captions are collected by item on the way, in the order of their number."""
    numbered: dict[str, list[tuple[int, str]]] = {}
    for part in parts:
        data = source.read_bytes(part.name)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise DataError(
                "a part is not the one its manifest describes",
                got=f"{source.uri}/{part.name}",
                expected=f"sha256 {part.sha256[:12]}",
                remedy="run `zscmr embed --overwrite`",
            )
        table = pq.read_table(io.BytesIO(data))
        if captions is not None:
            columns = (table.column(name).to_pylist() for name in ("id", "item_id", "caption"))
            for row_id, item_id, caption in zip(*columns, strict=True):
                number = int(row_id.rpartition("#")[2])
                numbered.setdefault(item_id, []).append((number, caption))
        yield table
        progress.advance(table.num_rows)
    if captions is not None:
        captions.update({item: [text for _, text in sorted(pairs)] for item, pairs in numbered.items()})


def _measure_recall(scratch: Path, sides: list[str], facts: VectorFacts) -> dict[str, float]:
    """Recall@10 against brute force for each direction, on rows of the one side asked of the other."""
    galleries = {side: Gallery(scratch / side) for side in sides}
    weight = RECALL_LABEL_WEIGHT if has_block(facts.blocks, LABEL) else 0.0
    found = {}
    for asked in sides:
        num_rows = galleries[asked].num_rows
        rows = np.unique(np.linspace(0, num_rows - 1, min(RECALL_QUERIES, num_rows)).astype(np.int64))
        queries_QD = weigh_query(
            np.array(galleries[asked].index.vectors_ND[rows]), facts.blocks, label_weight=weight
        )
        for answered in sides:
            found[f"{asked}->{answered}"] = recall_at_k(galleries[answered].index, queries_QD, k=RECALL_K)
    return found
