"""The embed stage: which pairs, which checkpoint, and that the two belong together."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from zscmr_ray.config import Config
from zscmr_ray.errors import RefusedError
from zscmr_ray.manifest import Manifest, StageKey, open_stage, require_manifest
from zscmr_ray.stages import StageResult, stage_store
from zscmr_ray.stages.embed.source import COLUMNS, FeatureSource, shards_of
from zscmr_ray.stages.plane.commit import clear_bookkeeping, finish_stage
from zscmr_ray.storage import Store

if TYPE_CHECKING:
    from zscmr_ray.engine.checkpoint import CheckpointMeta

STAGE = "embed"
# Rows that are worth one more encoder: its start costs seconds, and a CPU embeds thousands of cached rows a second.
_ROWS_PER_ENCODER = 20_000


def run_embed(config: Config, *, overwrite: bool = False) -> StageResult:
    """Embed every pair of the run with its checkpoint, from the cached features, resuming by part.

    Needs a running Ray unless everything is there already. Raises RefusedError, with both hashes, when the features
    come from other backbones than the checkpoint was trained on; DataError naming parts that could not be read.
    """
    # Here and not above: torch costs seconds, and decode workers import this package too.
    from zscmr_ray.engine.checkpoint import read_meta

    pairs_store, checkpoint = stage_store(config, "preprocess"), stage_store(config, "train")
    pairs = require_manifest(pairs_store, "preprocess")
    require_manifest(checkpoint, "train")
    meta = read_meta(checkpoint)
    check_same_features(pairs.info, meta)
    key = StageKey(
        stage=STAGE,
        config=config.stage_config(STAGE) | {"model": meta.fingerprint},
        input_fingerprint=pairs.fingerprint,
    )
    store = stage_store(config, STAGE)
    complete = open_stage(store, key, overwrite=overwrite)
    if complete is not None:
        clear_bookkeeping(store)
        return _result(store, complete, skipped=True)
    print(f"{STAGE}: features cached by preprocess are reused (backbone weights match)", file=sys.stderr)
    commits = _embed(config, pairs, meta, key)
    manifest = finish_stage(store, key, commits, info=_facts(meta) | _shapes(pairs))
    return _result(store, manifest, skipped=False)


def check_same_features(info: dict[str, Any], meta: CheckpointMeta) -> None:
    """Refuse features that the checkpoint was not trained on; raises RefusedError with both hashes."""
    for side, record in (("image_backbone", meta.image_backbone), ("text_backbone", meta.text_backbone)):
        if info[side]["weights_sha256"] != record.weights_sha256:
            raise RefusedError(
                f"the pairs' features come from another {side.replace('_', ' ')} than the checkpoint's",
                got=f"{info[side]['id']} {info[side]['weights_sha256']} (pairs)",
                expected=f"{record.id} {record.weights_sha256} (checkpoint)",
                remedy="preprocess the corpus with the checkpoint's backbones, into another run directory",
            )
    for name in ("region_grid", "max_tokens"):
        if info[name] != getattr(meta, name):
            raise RefusedError(
                f"the pairs' {name} is not the checkpoint's",
                got=f"{info[name]} (pairs)",
                expected=f"{getattr(meta, name)} (checkpoint)",
                remedy=f"preprocess the corpus with preprocess.{name}={getattr(meta, name)}",
            )


def _embed(config: Config, pairs: Manifest, meta: CheckpointMeta, key: StageKey) -> Any:
    from zscmr_ray.stages.embed.encoder import IMAGE, BuildVectorEncoder
    from zscmr_ray.stages.plane.run import PlaneJob, run_plane

    section, shards = config.embed, shards_of(pairs)
    rows = sum(shard.num_rows or 0 for shard in shards)
    provenance = {"stage": STAGE, "config_hash": key.config_hash} | _facts(meta)
    columns = (*COLUMNS, "thumbnail") if section.thumbnails else COLUMNS
    return run_plane(
        PlaneJob(
            stage=STAGE,
            store=stage_store(config, STAGE),
            shards=shards,
            source=FeatureSource(stage_store(config, "preprocess"), columns, section.chunk_rows),
            build_encoder=BuildVectorEncoder(
                stage_store(config, "train"), section, _shapes(pairs), provenance
            ),
            plane=section,
            item_output=IMAGE,
            max_encoders=max(1, math.ceil(rows / _ROWS_PER_ENCODER)),
        )
    )


def _facts(meta: CheckpointMeta) -> dict[str, Any]:
    """What every embeddings file says of its vectors: which model, which blocks, from which backbones."""
    return {
        "fingerprint": meta.fingerprint,
        "blocks": [block.model_dump() for block in meta.blocks],
        "dimension": meta.blocks[-1].stop,
        "label_temperature": meta.label_temperature,
        "image_backbone": {
            "id": meta.image_backbone.id,
            "weights_sha256": meta.image_backbone.weights_sha256,
        },
        "text_backbone": {"id": meta.text_backbone.id, "weights_sha256": meta.text_backbone.weights_sha256},
        "features": "cached",
    }


def _shapes(pairs: Manifest) -> dict[str, int]:
    return {name: int(pairs.info[name]) for name in ("num_regions", "token_channels")}


def _result(store: Store, manifest: Manifest, *, skipped: bool) -> StageResult:
    return StageResult(STAGE, store.uri, skipped=skipped, counts=manifest.counts, info=manifest.info)
