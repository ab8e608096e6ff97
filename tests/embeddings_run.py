"""A small finished `embeddings/` directory without a model: what stages/embed writes, drawn from a seed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from zscmr_ray.config import Config, DataSection
from zscmr_ray.manifest import Manifest, StageKey, part_record, write_manifest
from zscmr_ray.schema import image_embeddings_schema, text_embeddings_schema
from zscmr_ray.stages import stage_store

FINGERPRINT = "ab" * 32
BLOCKS: list[dict[str, object]] = [
    {"name": "region", "start": 0, "stop": 6},
    {"name": "label", "start": 6, "stop": 10},
]
COLOURS = ("red", "green", "blue")


def run_config(folder: Path) -> Config:
    """A configuration whose run lives in the folder."""
    return Config(data=DataSection(run_uri=str(folder)))


def unit_vectors(num: int, *, seed: int) -> npt.NDArray[np.float16]:
    """Vectors of two unit blocks; the label block is a square root of a distribution."""
    rng = np.random.default_rng(seed)
    region = rng.standard_normal((num, 6))
    region /= np.linalg.norm(region, axis=1, keepdims=True)
    return np.concatenate([region, np.sqrt(rng.dirichlet(np.ones(4), num))], axis=1).astype(np.float16)


def jpeg(colour: str, size: int = 32) -> bytes:
    """A small JPEG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def item_ids(num: int) -> list[str]:
    """Ids like the real ones, with the characters that need escaping in a URL."""
    return [f"shard {n % 3}/a.tar#item/{n:03d}?é" for n in range(num)]


def write_embeddings(
    config: Config,
    *,
    num_items: int = 12,
    captions_per_item: int = 2,
    sides: Sequence[str] = ("image", "text"),
    fingerprints: Sequence[str] = (FINGERPRINT, FINGERPRINT),
    ids: Sequence[str] | None = None,
    blocks: Sequence[dict[str, object]] = BLOCKS,
    vectors: Mapping[str, npt.NDArray[np.float16]] | None = None,
) -> None:
    """Write two parts per side and the manifest last. The second part of each side names `fingerprints[1]`.

    `vectors` (side -> [N, D], with their `blocks`) replace those drawn from a seed.
    """
    store = stage_store(config, "embed")
    ids = list(ids or item_ids(num_items))
    dimension = int(str(blocks[-1]["stop"]))
    rows = {side: _rows(side, ids, captions_per_item) for side in sides}
    for side, values in (vectors or {}).items():
        rows[side]["vector"] = list(values)
    records = []
    for side in sides:
        half = len(rows[side]["id"]) // 2
        for number, (start, stop) in enumerate(((half, None), (0, half))):
            metadata = {"fingerprint": fingerprints[number], "blocks": blocks}
            schema = (
                image_embeddings_schema(dimension=dimension, num_regions=4, metadata=metadata)
                if side == "image"
                else text_embeddings_schema(dimension=dimension, metadata=metadata)
            )
            columns = {name: values[start:stop] for name, values in rows[side].items()}
            flat = pa.array(np.concatenate(columns["vector"]), pa.float16())
            columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, dimension)
            table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
            name = f"{side}/part-{number:016x}.parquet"
            with store.open_write(name) as file:
                pq.write_table(table, file)
            records.append(part_record(store, name, rows=table.num_rows))
    key = StageKey(stage="embed", config={}, input_fingerprint="none")
    counts = {side: len(rows[side]["id"]) for side in sides}
    write_manifest(store, Manifest(key=key, config_hash=key.config_hash, counts=counts, parts=records))


def _rows(side: str, ids: list[str], captions_per_item: int) -> dict[str, list[object]]:
    num = len(ids)
    labels = [[COLOURS[n % 3]] if n % 4 else [COLOURS[n % 3], "any"] for n in range(num)]
    if side == "image":
        return {
            "id": ids,
            "vector": list(unit_vectors(num, seed=1)),
            # One item came without a thumbnail.
            "thumbnail": [jpeg(COLOURS[n % 3]) if n else None for n in range(num)],
            "labels": labels,
            "region_weights": [[0.25] * 4] * num,
            "source_shard": ["a.tar"] * num,
            "source_offset": list(range(num)),
            "sha256": ["0" * 64] * num,
        }
    pairs = [(n, c) for n in range(num) for c in range(captions_per_item)]
    return {
        "id": [f"{ids[n]}#{c}" for n, c in pairs],
        "item_id": [ids[n] for n, _ in pairs],
        "caption": [f"caption {c} of item {n}" for n, c in pairs],
        "vector": list(unit_vectors(len(pairs), seed=2)),
        "labels": [labels[n] for n, _ in pairs],
    }
