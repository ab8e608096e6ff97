"""Preprocess for a dataset that comes as features: one region and one token a row, no backbone, no picture.

The same plane as for pictures; only the source and the encoder differ. The captions are the texts themselves, for people:
the model sees the features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from zscmr_ray.config import DataSection
from zscmr_ray.data.layouts.base import SHARD_ROWS
from zscmr_ray.data.layouts.matlab import read_matrices
from zscmr_ray.data.layouts.wikipedia_features import FEATURES, IMAGE_CHANNELS, TEXT_CHANNELS, matrix_names
from zscmr_ray.data.records import Reject
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.schema import pairs_schema
from zscmr_ray.stages.plane.chunks import DecodedChunk, EncodedChunk, RejectedRow, Shard
from zscmr_ray.stages.shards.source import KEEP, admitted
from zscmr_ray.storage import Store

FORMAT = "wikipedia_features"
_SIDES = {
    "image_backbone": ("sift-128", IMAGE_CHANNELS, "histograms of 128 SIFT words (no network)"),
    "text_backbone": ("lda-10", TEXT_CHANNELS, "an LDA of ten topics (no network)"),
}


def describe_features(data: DataSection) -> dict[str, Any]:
    """What the pairs' manifest says in the place of backbones. Raises ConfigError for settings that features exclude."""
    if data.modality != "pairs" or data.mask_class_words:
        raise ConfigError(
            f"data.format={FORMAT} is pairs of features, and no text is encoded",
            got=f"data.modality={data.modality}, data.mask_class_words={data.mask_class_words}",
            expected="data.modality=pairs, data.mask_class_words=false",
        )
    sides: dict[str, dict[str, Any]] = {
        side: {
            "id": name,
            "weights_sha256": hashlib.sha256(name.encode()).hexdigest(),
            "num_channels": num_channels,
            "trained_on": what,
        }
        for side, (name, num_channels, what) in _SIDES.items()
    }
    sides["image_backbone"]["spec"] = {"size_px": 1, "crop_fraction": 1.0, "interpolation": "none"}
    sides["text_backbone"]["max_tokens"] = 1
    return sides | {
        "modality": "pairs",
        "teacher": None,
        "num_classes": None,
        "region_grid": 1,
        "num_regions": 1,
        "image_channels": IMAGE_CHANNELS,
        "token_channels": TEXT_CHANNELS,
        "max_tokens": 1,
    }


@dataclass(frozen=True)
class FeatureSource:
    """Reads shards of rows with their features; a `plane.chunks.Source`."""

    input: Store
    data: DataSection

    def read(self, shard: Shard) -> Iterator[DecodedChunk]:
        """Yield the shard as one chunk; raises DataError for features that do not fit the lists."""
        partition, _, number = shard.key.rpartition("-")
        start, keep = int(number) * SHARD_ROWS, shard.detail.get(KEEP)
        image_ND, text_ND = self._features(partition, stop=start + len(shard.detail["rows"]))
        rows: list[dict[str, Any]] = []
        rejects: list[RejectedRow] = []
        num_in = num_filtered = 0
        for entry in admitted(self.input, self.data, shard, with_images=False):
            num_in += 1
            if isinstance(entry, Reject):
                rejects.append(
                    RejectedRow(
                        entry.key, shard.key, entry.offset, entry.stage, entry.code.value, entry.reason
                    )
                )
                continue
            record, item = entry
            if keep is not None and record.offset not in keep:
                num_filtered += 1
                continue
            place = start + record.offset
            image, text = image_ND[place], text_ND[place]
            rows.append(
                {
                    "id": item.id,
                    "regions": image.tobytes(),
                    "captions": [item.captions[0]],
                    "tokens": [text.tobytes()],
                    "labels": list(item.labels),
                    "partition": item.partition,
                    "source_shard": shard.key,
                    "source_offset": record.offset,
                    "sha256": hashlib.sha256(image.tobytes()).hexdigest(),
                }
            )
        yield DecodedChunk(
            pa.Table.from_pylist(rows, schema=_schema({})), tuple(rejects), num_in, num_filtered, last=True
        )

    def _features(
        self, partition: str, *, stop: int
    ) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
        names = matrix_names(partition)
        found = read_matrices(self.input.read_bytes(FEATURES), names, where=FEATURES)
        made = []
        for name, channels in zip(names, (IMAGE_CHANNELS, TEXT_CHANNELS), strict=True):
            matrix_ND = found[name].astype("<f2")
            if matrix_ND.shape[1] != channels or len(matrix_ND) < stop or not np.isfinite(matrix_ND).all():
                raise DataError(
                    f"{FEATURES}: {name} does not fit the list of {partition}",
                    got=f"shape {matrix_ND.shape}",
                    expected=f"{stop} rows or more of {channels} finite values",
                )
            made.append(matrix_ND)
        return made[0], made[1]


@dataclass(frozen=True)
class BuildFeaturePairs:
    """Builds the encoder inside an actor."""

    provenance: dict[str, Any]

    def __call__(self) -> FeaturePairs:
        """Nothing is loaded."""
        return FeaturePairs(_schema(self.provenance))


class FeaturePairs:
    """Gives the rows their schema; a `plane.chunks.Encoder` without a model."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema

    def bring(self, table: pa.Table) -> None:
        """Nothing: there is no model."""

    def encode(self, table: pa.Table, brought: None = None) -> EncodedChunk:
        """Return the rows as pairs."""
        return EncodedChunk({"": table.cast(self.schema)})


def _schema(provenance: dict[str, Any]) -> pa.Schema:
    return pairs_schema(region_bytes=2 * IMAGE_CHANNELS, num_classes=None, metadata=provenance)
