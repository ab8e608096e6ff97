"""A finished preprocess without a backbone: pairs whose features carry their class, for tests of training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zscmr_ray.config import Config
from zscmr_ray.manifest import Manifest, StageKey, part_record, write_manifest
from zscmr_ray.recipes import vary
from zscmr_ray.schema import PARQUET_OPTIONS, pairs_schema
from zscmr_ray.stages import stage_store

GRID, IMAGE_CHANNELS, TOKEN_CHANNELS, TEACHER_CLASSES = 2, 12, 10, 6
PARTITIONS = ("train", "train", "train", "val", "test")


@dataclass(frozen=True)
class PairsSpec:
    """How many pairs of which classes; `not_finite` are rows whose regions hold `fault`."""

    num_classes: int = 8
    rows_per_class: int = 15
    labelled: bool = True
    not_finite: Sequence[int] = ()
    fault: float = np.nan


def tiny_config(run_uri: object, **sections: dict[str, object]) -> Config:
    """A configuration that trains in milliseconds; later sections win field by field."""
    base: dict[str, dict[str, object]] = {
        "data": {"run_uri": str(run_uri)},
        "model": {"width": 16, "latent": 8, "num_heads": 2, "num_noise_samples": 8, "ratio": 0.5},
        "optim": {"max_epochs": 4, "lr": 1e-3, "warmup_steps": 2},
        "train": {"global_batch_size": 8, "threads_per_worker": 1, "checkpoint_every_steps": 5},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values
    return vary(Config(), recipe="fgan", **base)


def write_pairs(config: Config, spec: PairsSpec | None = None) -> Manifest:
    """Write `pairs/` of two parts with its manifest, as preprocess would."""
    spec = spec or PairsSpec()
    store = stage_store(config, "preprocess")
    num_rows = spec.num_classes * spec.rows_per_class
    names = []
    for number, rows in enumerate(np.array_split(np.arange(num_rows), 2)):
        name = f"part-{number:016x}.parquet"
        with store.open_write(name) as file:
            pq.write_table(_table([int(row) for row in rows], spec), file, **PARQUET_OPTIONS)
        names.append(name)
    key = StageKey(
        stage="preprocess", config={}, input_fingerprint=hashlib.sha256(repr(spec).encode()).hexdigest()
    )
    manifest = Manifest(
        key=key,
        config_hash=key.config_hash,
        counts={"rows": num_rows},
        parts=[part_record(store, name) for name in names],
        info=pairs_info(),
    )
    write_manifest(store, manifest)
    return manifest


def pairs_info() -> dict[str, object]:
    """What preprocess says about its backbones."""
    spec = {
        "size_px": 8,
        "crop_fraction": 1.0,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    image = {
        "id": "tiny",
        "weights_sha256": "1" * 64,
        "num_channels": IMAGE_CHANNELS,
        "trained_on": "nothing",
        "spec": spec,
    }
    text = {
        "id": "tiny",
        "weights_sha256": "2" * 64,
        "num_channels": TOKEN_CHANNELS,
        "trained_on": "nothing",
        "max_tokens": 8,
    }
    teacher = {"id": "tiny", "weights_sha256": "1" * 64, "num_classes": TEACHER_CLASSES, "class_names": None}
    return {
        "image_backbone": image,
        "text_backbone": text,
        "teacher": teacher,
        "num_classes": TEACHER_CLASSES,
        "region_grid": GRID,
        "num_regions": GRID**2,
        "image_channels": IMAGE_CHANNELS,
        "token_channels": TOKEN_CHANNELS,
        "max_tokens": 8,
    }


def make_tables(spec: PairsSpec | None = None) -> list[pa.Table]:
    """The rows of a spec as one table, for tests without a store."""
    spec = spec or PairsSpec()
    return [_table(list(range(spec.num_classes * spec.rows_per_class)), spec)]


def _table(rows: list[int], spec: PairsSpec) -> pa.Table:
    schema = pairs_schema(
        region_bytes=GRID**2 * IMAGE_CHANNELS * 2,
        num_classes=TEACHER_CLASSES,
        metadata={"stage": "preprocess"},
    )
    return pa.Table.from_pylist([_row(row, spec) for row in rows], schema=schema)


def _row(row: int, spec: PairsSpec) -> dict[str, object]:
    random = np.random.default_rng(row)
    number = row % spec.num_classes
    centre = np.random.default_rng(1000 + number)
    regions = centre.standard_normal(IMAGE_CHANNELS) + 0.5 * random.standard_normal((GRID**2, IMAGE_CHANNELS))
    if row in spec.not_finite:
        regions[0, 0] = spec.fault
    meaning = centre.standard_normal(TOKEN_CHANNELS)
    tokens = [
        (meaning + 0.5 * random.standard_normal((length, TOKEN_CHANNELS))).astype(np.float16).tobytes()
        for length in random.integers(1, 6, size=2)
    ]
    return {
        "id": f"shard#{row}",
        "thumbnail": None,
        "image": None,
        "regions": regions.astype(np.float16).tobytes(),
        "captions": [f"caption {row} a", f"caption {row} b"],
        "tokens": tokens,
        "labels": [f"class {number}"] if spec.labelled else [],
        "partition": PARTITIONS[(row // spec.num_classes) % len(PARTITIONS)],
        "prior_logits": centre.standard_normal(TEACHER_CLASSES).astype(np.float16),
        "source_shard": "shard",
        "source_offset": row,
        "sha256": hashlib.sha256(str(row).encode()).hexdigest(),
    }
