"""A run that the serving benchmarks can serve: real backbones, an FGAN with its initial weights, and drawn vectors."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.config import Config
from zscmr_ray.engine.checkpoint import BackboneRecord, BlockRecord, CheckpointMeta, save_checkpoint
from zscmr_ray.manifest import Manifest, StageKey, part_record, write_manifest
from zscmr_ray.models.backbones import load_image_backbone, load_text_backbone
from zscmr_ray.models.fgan import FganSettings, build_fgan
from zscmr_ray.recipes import vary
from zscmr_ray.schema import text_embeddings_schema
from zscmr_ray.serving.front import free_ports
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.index import run_index

WORDS = tuple(
    "a small red dog runs over wet grass near two people with blue hats while children watch from an old wooden "  # noqa: SIM905
    "bridge under grey clouds and one man holds his yellow umbrella beside parked cars in front of tall houses".split()
)


def texts(count: int, *, seed: int = 0) -> list[str]:
    """Distinct captions of 8 to 14 words: no answer comes from a memory of texts."""
    rng = np.random.default_rng(seed)
    return [f"{' '.join(rng.choice(WORDS, int(rng.integers(8, 15))))} {number}" for number in range(count)]


def make_run(folder: Path, *, num_rows: int, **serve: Any) -> Config:
    """A run of the real backbones and an FGAN with its initial weights (training changes no speed), and drawn vectors."""
    config = vary(
        Config(), recipe="fgan", data={"run_uri": str(folder)}, serve={"port": free_ports(1)[0], **serve}
    )
    image, text = load_image_backbone("efficientnet-lite0"), load_text_backbone("minilm")
    model = build_fgan(FganSettings(image.num_channels, text.num_channels), seed=0)
    meta = CheckpointMeta(
        architecture=model.architecture(),
        blocks=tuple(BlockRecord(name=b.name, start=b.start, stop=b.stop) for b in model.blocks),
        label_temperature=1.0,
        label_weight=0.5,
        image_backbone=_record(image, "efficientnet-lite0", image.num_channels),
        text_backbone=_record(text, "minilm", text.num_channels),
        teacher={"id": "efficientnet-lite0"},
        preprocessing=json.loads(json.dumps(asdict(image.spec))),
        region_grid=7,
        max_tokens=64,
        selection={"steps": 0, "rows": "none", "score": 0.0, "chance": 0.0, "table": []},
        recipe="fgan",
        config=config.model_dump(mode="json"),
        split=None,
    )
    store = stage_store(config, "train")
    signed = save_checkpoint(store, model, meta)
    key = StageKey(stage="train", config={}, input_fingerprint=signed.fingerprint)
    write_manifest(store, Manifest(key=key, config_hash=key.config_hash))
    _write_embeddings(config, signed, num_rows=num_rows)
    run_index(config)
    return config


def _record(backbone: Any, name: str, channels: int) -> BackboneRecord:
    return BackboneRecord(id=name, weights_sha256=backbone.weights_sha256, num_channels=channels)


def _write_embeddings(config: Config, meta: CheckpointMeta, *, num_rows: int) -> None:
    rng = np.random.default_rng(0)
    dimension = meta.blocks[-1].stop
    vectors = np.empty((num_rows, dimension), np.float32)
    for block in meta.blocks:
        part = np.abs(rng.standard_normal((num_rows, block.stop - block.start), dtype=np.float32))
        vectors[:, block.start : block.stop] = part / np.linalg.norm(part, axis=1, keepdims=True)
    ids = [f"{number:07d}" for number in range(num_rows)]
    flat = pa.array(vectors.astype(np.float16).ravel(), pa.float16())
    columns = {
        "id": [f"{name}#0" for name in ids],
        "item_id": ids,
        "caption": [f"caption of item {name}" for name in ids],
        "vector": pa.FixedSizeListArray.from_arrays(flat, dimension),
        "labels": [["class"]] * num_rows,
        "source_shard": ["a.tar"] * num_rows,
        "source_offset": list(range(num_rows)),
    }
    metadata = {"fingerprint": meta.fingerprint, "blocks": [b.model_dump() for b in meta.blocks]}
    schema = text_embeddings_schema(dimension=dimension, metadata=metadata)
    store = stage_store(config, "embed")
    name = "text/part-0000000000000000.parquet"
    with store.open_write(name) as file:
        pq.write_table(pa.table({n: columns[n] for n in schema.names}, schema=schema), file)
    key = StageKey(stage="embed", config={}, input_fingerprint="none")
    parts = [part_record(store, name, rows=num_rows)]
    write_manifest(
        store,
        Manifest(key=key, config_hash=key.config_hash, counts={"text": num_rows, "image": 0}, parts=parts),
    )
