"""A finished preprocess and a trained checkpoint on disk, made without Ray in milliseconds, for the later stages."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from zscmr_ray.config import Config
from zscmr_ray.data.splits import make_class_split
from zscmr_ray.engine.checkpoint import BackboneRecord, BlockRecord, CheckpointMeta, save_checkpoint
from zscmr_ray.manifest import Manifest, StageKey, part_record, write_manifest
from zscmr_ray.models.backbones import load_image_backbone, load_text_backbone
from zscmr_ray.models.base import AlignmentModel
from zscmr_ray.models.build import build_model
from zscmr_ray.models.fgan import FganSettings, build_fgan
from zscmr_ray.models.imfa import InnSettings
from zscmr_ray.recipes import vary
from zscmr_ray.schema import PARQUET_OPTIONS, pairs_schema
from zscmr_ray.stages import stage_store

GRID, CHANNELS, TEACHER_CLASSES = 2, 32, 16
CLASS_NAMES = tuple(f"kind {letter}" for letter in "abcdefgh")


def small_config(run_uri: str, **evaluate: Any) -> Config:
    """A configuration for a small run: tiny backbones, few resamples."""
    return vary(
        Config(),
        recipe="fgan",
        data={"run_uri": run_uri},
        preprocess={"image_backbone": "tiny", "text_backbone": "tiny", "region_grid": GRID},
        evaluate={"bootstrap_resamples": 100, "num_gallery_queries": 3, **evaluate},
    )


def write_pairs(config: Config, *, num_items: int = 160, labelled: bool = True, seed: int = 0) -> None:
    """Write two parts of pairs whose features lean towards their class, and the manifest."""
    rng = np.random.default_rng(seed)
    store = stage_store(config, "preprocess")
    centres = 2 * rng.standard_normal((len(CLASS_NAMES), CHANNELS))
    schema = pairs_schema(region_bytes=GRID**2 * CHANNELS * 2, num_classes=TEACHER_CLASSES, metadata={})
    rows = [_row(rng, number, centres, labelled=labelled) for number in range(num_items)]
    names = []
    for name, part in (
        ("part-a.parquet", rows[: num_items // 3]),
        ("part-b.parquet", rows[num_items // 3 :]),
    ):
        with store.open_write(name) as file:
            pq.write_table(pa.Table.from_pylist(part, schema=schema), file, **PARQUET_OPTIONS)
        names.append(name)
    write_manifest(
        store,
        Manifest(
            key=StageKey(stage="preprocess", config={}, input_fingerprint=str(seed)),
            config_hash="0",
            counts={"in": num_items, "out": num_items},
            parts=[part_record(store, name, rows=1) for name in names],
            info=pairs_info(),
        ),
    )


def pairs_info() -> dict[str, Any]:
    """What the manifest of the pairs says of their features."""
    image, text = load_image_backbone("tiny"), load_text_backbone("tiny")
    return {
        "num_regions": GRID**2,
        "region_grid": GRID,
        "token_channels": CHANNELS,
        "max_tokens": 16,
        "image_backbone": {
            "id": "tiny",
            "weights_sha256": image.weights_sha256,
            "spec": {"crop_fraction": image.spec.crop_fraction},
        },
        "text_backbone": {"id": "tiny", "weights_sha256": text.weights_sha256},
        "teacher": {"id": "tiny", "class_names": list(image.class_names or ())},
    }


def small_imfa() -> AlignmentModel:
    """A small IMFA with its initial weights."""
    settings = InnSettings(CHANNELS, CHANNELS, width=16, attention="fused", attention_width=8)
    return build_model({"method": "inn", **asdict(settings)}, seed=0)


def write_checkpoint(
    config: Config,
    *,
    labelled: bool = True,
    steps: int = 5,
    model: AlignmentModel | None = None,
    **changes: Any,
) -> CheckpointMeta:
    """Write a checkpoint of a small FGAN, or of `model`, with initial weights, said to be trained for `steps` steps."""
    store = stage_store(config, "train")
    settings = FganSettings(
        CHANNELS, CHANNELS, num_classes=TEACHER_CLASSES, width=16, num_heads=2, latent=8, num_noise_samples=10
    )
    torch.manual_seed(0)
    model = model or build_fgan(settings, seed=0)
    split = make_class_split(
        dict.fromkeys(CLASS_NAMES, 20), "even_odd" if labelled else "none", pseudo_unseen_fraction=0.25
    )
    image, text = load_image_backbone("tiny"), load_text_backbone("tiny")
    meta = CheckpointMeta(
        architecture=model.architecture(),
        blocks=tuple(BlockRecord(name=b.name, start=b.start, stop=b.stop) for b in model.blocks),
        label_temperature=1.0,
        label_weight=0.4,
        image_backbone=_record(image),
        text_backbone=_record(text),
        teacher={"id": "tiny"},
        preprocessing=json.loads(json.dumps(asdict(image.spec))),
        region_grid=GRID,
        max_tokens=16,
        selection={"steps": steps, "rows": "pseudo-unseen", "score": 0.5, "chance": 0.25, "table": []},
        recipe="fgan",
        config=config.model_dump(mode="json"),
        split=json.loads(split.to_json()) if labelled else None,
    )
    signed = save_checkpoint(store, model, meta.model_copy(update=changes))
    write_manifest(
        store,
        Manifest(
            key=(key := StageKey(stage="train", config={}, input_fingerprint=signed.fingerprint)),
            config_hash=key.config_hash,
            info={"fingerprint": signed.fingerprint},
        ),
    )
    return signed


def _record(backbone: Any) -> BackboneRecord:
    return BackboneRecord(
        id="tiny",
        weights_sha256=backbone.weights_sha256,
        num_channels=CHANNELS,
        trained_on=backbone.trained_on,
    )


def _row(rng: np.random.Generator, number: int, centres: np.ndarray, *, labelled: bool) -> dict[str, Any]:
    kind = number % len(CLASS_NAMES)
    near = centres[kind] + rng.standard_normal((GRID**2, CHANNELS))
    colour = tuple(int(value) for value in rng.integers(0, 255, 3))
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(buffer, "JPEG")
    captions = [f"picture {number} & <b>{word}</b>" for word in ("one", "two")[: 1 + number % 2]]
    return {
        "id": f"shard.tar#{number}",
        "thumbnail": buffer.getvalue(),
        "image": None,
        "regions": near.astype(np.float16).tobytes(),
        "captions": captions,
        "tokens": [
            (centres[kind] + rng.standard_normal((2 + number % 3, CHANNELS))).astype(np.float16).tobytes()
            for _ in captions
        ],
        "labels": [CLASS_NAMES[kind]] if labelled else [],
        "partition": ("train", "test", "val", "train")[(number // len(CLASS_NAMES)) % 4],
        "prior_logits": rng.standard_normal(TEACHER_CLASSES).astype(np.float16),
        "source_shard": "shard.tar",
        "source_offset": number,
        "sha256": f"{number:064x}",
    }
