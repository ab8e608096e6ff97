"""What is on disk: the columns of every table, the closed lists of words in them, and the version of it all.

The one place that says so (DESIGN 2). Plain Arrow types only, no extension types: any parquet reader understands
the output. Vectors are f16; `regions` and `tokens` are raw little-endian f16 bytes, `[R, D]` and `[length, D]`
row-major, because their shape is the backbone's and is written in the file metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum

import pyarrow as pa

SCHEMA_VERSION = 1
VERSION_KEY = b"zscmr_schema"
PROVENANCE_KEY = b"zscmr_provenance"

# The parquet writer is pinned: a part's bytes depend on its rows alone (DESIGN 2, exactly-once visible output).
PARQUET_OPTIONS: dict[str, object] = {
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": False,
    "write_statistics": True,
    "version": "2.6",
    "data_page_version": "1.0",
    "store_schema": True,
}
ROW_GROUP_ROWS = 1024

# How a manifest's `model` begins where another program made the vectors: no model here encodes a query for them.
FOREIGN_MODEL = "foreign:"


class Partition(StrEnum):
    """Where an item is used: trained on, validated on, or queried with at the end."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class RejectCode(StrEnum):
    """Why a row is in `rejected/` and not in the output: a closed list."""

    UNREADABLE_RECORD = "unreadable_record"
    BAD_PATH = "bad_path"
    MISSING_IMAGE = "missing_image"
    EMPTY_IMAGE = "empty_image"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED_IMAGE = "truncated_image"
    UNDECODABLE_IMAGE = "undecodable_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    MISSING_CAPTION = "missing_caption"
    EMPTY_CAPTION = "empty_caption"
    BAD_TEXT_ENCODING = "bad_text_encoding"
    MISSING_LABEL = "missing_label"
    DUPLICATE_ID = "duplicate_id"
    BAD_ID = "bad_id"
    ENCODE_FAILED = "encode_failed"
    NON_FINITE = "non_finite"


def part_name(shard_key: str) -> str:
    """The output file of an input shard: a pure function of the shard's relative key.

    >>> part_name("train-00000.tar")
    'part-c638a0ce80f306b7.parquet'
    """
    return f"part-{hashlib.sha1(shard_key.encode()).hexdigest()[:16]}.parquet"


def pairs_schema(
    *, region_bytes: int | None, num_classes: int | None, metadata: Mapping[str, object]
) -> pa.Schema:
    """Columns of `pairs/part-*.parquet`: one row per item.

    `region_bytes` is R x D x 2 of the cached feature map and `num_classes` the teacher's; None where there is none.
    """
    regions = pa.binary(region_bytes) if region_bytes else pa.null()
    priors = pa.list_(pa.float16(), num_classes) if num_classes else pa.null()
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("thumbnail", pa.binary()),
        pa.field("image", pa.binary()),
        pa.field("regions", regions),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("tokens", pa.list_(pa.binary())),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("partition", pa.string(), nullable=False),
        pa.field("prior_logits", priors),
        *_provenance_fields(),
    ]
    return pa.schema(fields, metadata=file_metadata(metadata))


def image_embeddings_schema(
    *,
    dimension: int,
    num_regions: int | None,
    metadata: Mapping[str, object],
    region_bytes: int | None = None,
) -> pa.Schema:
    """Columns of `embeddings/image/part-*.parquet`: one row per item; no `num_regions` where pictures are embedded whole.

    `region_bytes` is R x D x 2 of the projected regions where they are kept (`embed.regions`); else there is no column.
    """
    weights = pa.list_(pa.float16(), num_regions) if num_regions else pa.null()
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.float16(), dimension), nullable=False),
        pa.field("thumbnail", pa.binary()),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("region_weights", weights),
        *([pa.field("regions", pa.binary(region_bytes))] if region_bytes else []),
        *_provenance_fields(),
    ]
    return pa.schema(fields, metadata=file_metadata(metadata))


def text_embeddings_schema(*, dimension: int, metadata: Mapping[str, object]) -> pa.Schema:
    """Columns of `embeddings/text/part-*.parquet`: one row per caption, id = `<item>#<n>`."""
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.float16(), dimension), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
    ]
    return pa.schema(fields, metadata=file_metadata(metadata))


def rejected_schema(metadata: Mapping[str, object]) -> pa.Schema:
    """Columns of `rejected/part-*.parquet`: one row per input row that is not in the output, and why."""
    fields = [
        pa.field("id", pa.string()),
        pa.field("shard_key", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
    return pa.schema(fields, metadata=file_metadata(metadata))


def duplicates_schema(metadata: Mapping[str, object]) -> pa.Schema:
    """Columns of `duplicates.parquet`: one row per row that shares a group with another, and which one to keep."""
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("keep", pa.bool_(), nullable=False),
    ]
    return pa.schema(fields, metadata=file_metadata(metadata))


def file_metadata(provenance: Mapping[str, object]) -> dict[bytes, bytes]:
    """A file's key-value metadata: the schema version and its provenance (free of places and times), sorted."""
    text = json.dumps(provenance, sort_keys=True, ensure_ascii=False)
    return {PROVENANCE_KEY: text.encode(), VERSION_KEY: str(SCHEMA_VERSION).encode()}


def provenance_of(schema: pa.Schema) -> dict[str, object]:
    """Read back what `file_metadata` wrote; empty for a file that is not ours."""
    raw = (schema.metadata or {}).get(PROVENANCE_KEY)
    return dict(json.loads(raw)) if raw else {}


def _provenance_fields() -> list[pa.Field]:
    return [
        pa.field("source_shard", pa.string(), nullable=False),
        pa.field("source_offset", pa.int64(), nullable=False),
        pa.field("sha256", pa.string()),
    ]
