"""The model half of embed: cached features of one chunk to stored vectors of both sides.

Vectors are unweighted unit blocks in half precision; weights belong to the query (DESIGN 2). Texts are padded to the
longest caption of their group of `_CAPTION_ROWS`, which the chunk decides, never a worker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from zscmr_ray.config import EmbedSection
from zscmr_ray.data.pairs import PairFeatures, load_pair_features
from zscmr_ray.engine.checkpoint import load_checkpoint
from zscmr_ray.models.base import AlignmentModel
from zscmr_ray.schema import RejectCode, image_embeddings_schema, text_embeddings_schema
from zscmr_ray.stages.plane.chunks import EncodedChunk, RejectedRow
from zscmr_ray.storage import Store

IMAGE, TEXT = "image", "text"
_CAPTION_ROWS = 256

LoadModel = Callable[[], AlignmentModel]


@dataclass(frozen=True)
class BuildVectorEncoder:
    """Builds the encoder inside an actor."""

    checkpoint: Store
    section: EmbedSection
    shapes: dict[str, int]
    provenance: dict[str, Any]

    def __call__(self) -> VectorEncoder:
        """Load the checkpoint on the actor's device; its fingerprint is checked on loading."""
        device = "cuda" if self.section.encoder_gpus else "cpu"
        model, _ = load_checkpoint(self.checkpoint, device=device)
        return VectorEncoder(model, self.section, self.shapes, self.provenance)


class VectorEncoder:
    """Turns pairs with cached features into embeddings; a `plane.chunks.Encoder`."""

    def __init__(
        self,
        model: AlignmentModel,
        section: EmbedSection,
        shapes: dict[str, int],
        provenance: dict[str, Any],
    ) -> None:
        """`shapes` are the pairs' `num_regions` and `token_channels`."""
        self.model, self.section, self.shapes = model, section, shapes
        self.device = next(model.parameters()).device
        self.image_schema = image_embeddings_schema(
            dimension=model.dim, num_regions=shapes["num_regions"], metadata=provenance
        )
        self.text_schema = text_embeddings_schema(dimension=model.dim, metadata=provenance)

    def encode(self, table: pa.Table) -> EncodedChunk:
        """Encode both sides; an item with a vector that is not finite is rejected with its captions."""
        if table.num_rows == 0:
            outputs = {IMAGE: self.image_schema.empty_table(), TEXT: self.text_schema.empty_table()}
            return EncodedChunk(outputs)
        features = load_pair_features(
            [table], num_regions=self.shapes["num_regions"], token_channels=self.shapes["token_channels"]
        )
        with torch.inference_mode():
            images_ND, weights_NR = self._images(features)
            texts_MD = self._texts(features)
        finite_N = np.atleast_1d(np.isfinite(images_ND).all(axis=1))
        item_M = features.caption_item_M
        finite_N[item_M[~np.isfinite(texts_MD).all(1)]] = False
        outputs = {
            IMAGE: self._image_rows(table, images_ND, weights_NR),
            TEXT: self._text_rows(features, texts_MD),
        }
        if finite_N.all():
            return EncodedChunk(outputs)
        masks = {IMAGE: finite_N, TEXT: finite_N[item_M]}
        kept = {side: rows.filter(pa.array(masks[side])) for side, rows in outputs.items()}
        return EncodedChunk(kept, _not_finite(table, finite_N))

    def _images(
        self, features: PairFeatures
    ) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16] | None]:
        regions_BRD = torch.from_numpy(features.regions_NRD.copy()).to(self.device).float()
        side = self.model.encode_image(regions_BRD)
        has_weights = self.section.region_weights and side.weights_BR is not None
        return _half(self.model.vectors(side)), _half(side.weights_BR) if has_weights else None

    def _texts(self, features: PairFeatures) -> npt.NDArray[np.float16]:
        parts = [np.empty((0, self.model.dim), np.float16)]
        for start in range(0, features.num_captions, _CAPTION_ROWS):
            rows = np.arange(start, min(start + _CAPTION_ROWS, features.num_captions))
            tokens_BLD, lengths_B = features.padded_tokens(rows)
            side = self.model.encode_text(tokens_BLD.to(self.device), lengths_B.to(self.device))
            parts.append(_half(self.model.vectors(side)))
        return np.concatenate(parts)

    def _image_rows(
        self,
        table: pa.Table,
        vectors_ND: npt.NDArray[np.float16],
        weights_NR: npt.NDArray[np.float16] | None,
    ) -> pa.Table:
        made = {"vector": _fixed_list(vectors_ND)}
        made["region_weights"] = _fixed_list(weights_NR) if weights_NR is not None else None
        made["thumbnail"] = table["thumbnail"] if self.section.thumbnails else None
        return _rows(self.image_schema, made, table)

    def _text_rows(self, features: PairFeatures, vectors_MD: npt.NDArray[np.float16]) -> pa.Table:
        items = [(item, number) for item, row in enumerate(features.captions) for number in range(len(row))]
        columns = {
            "id": [f"{features.ids[item]}#{number}" for item, number in items],
            "item_id": [features.ids[item] for item, _ in items],
            "caption": [features.captions[item][number] for item, number in items],
            "labels": [list(features.labels[item]) for item, _ in items],
        }
        arrays = {
            name: pa.array(values, self.text_schema.field(name).type) for name, values in columns.items()
        }
        return _rows(self.text_schema, arrays | {"vector": _fixed_list(vectors_MD)}, None)


def _rows(schema: pa.Schema, made: dict[str, Any], table: pa.Table | None) -> pa.Table:
    """Columns that were made, or None for a column of nulls, or else the input's, in the schema's order."""
    length = len(made["vector"])
    columns = []
    for field in schema:
        if field.name not in made:
            assert table is not None
            columns.append(table[field.name])
        else:
            values = made[field.name]
            columns.append(pa.nulls(length, field.type) if values is None else values)
    return pa.table(columns, schema=schema)


def _half(tensor: torch.Tensor | None) -> npt.NDArray[np.float16]:
    assert tensor is not None
    return tensor.to(torch.float16).cpu().contiguous().numpy()


def _fixed_list(values_ND: npt.NDArray[np.float16]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_ND.ravel()), values_ND.shape[1])


def _not_finite(table: pa.Table, finite_N: npt.NDArray[np.bool_]) -> tuple[RejectedRow, ...]:
    reason = "a vector that is not finite in half precision"
    return tuple(
        RejectedRow(
            table["id"][row].as_py(),
            table["source_shard"][row].as_py(),
            table["source_offset"][row].as_py(),
            "encode",
            RejectCode.NON_FINITE,
            reason,
        )
        for row in np.flatnonzero(~finite_N).tolist()
    )
