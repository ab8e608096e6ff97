"""The model half of embed: one chunk to stored vectors of the sides there are, from cached features or from pixels.

Vectors are unweighted unit blocks in half precision; weights belong to the query (DESIGN 2). Captions are encoded
`_CAPTION_ROWS` at a time, each group padded to its longest: the chunk decides, never a worker. Features pass through
half precision either way (models/dual_encoder.py), so that a vector does not depend on where they came from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from zscmr_ray.config import EmbedSection
from zscmr_ray.data.pairs import PairFeatures, load_pair_features
from zscmr_ray.engine.vector_model import ModelPlace, VectorModel, load_model
from zscmr_ray.models.backbones.frozen import run_all_in
from zscmr_ray.models.base import SideOutput
from zscmr_ray.models.dual_encoder import DualEncoder
from zscmr_ray.schema import RejectCode, image_embeddings_schema, text_embeddings_schema
from zscmr_ray.stages.plane.chunks import EncodedChunk, RejectedRow
from zscmr_ray.stages.plane.encode import shared_tensor
from zscmr_ray.stages.shards.pixels import bring_pixels

IMAGE, TEXT = "image", "text"
_CAPTION_ROWS = 256


@dataclass(frozen=True)
class FeatureShapes:
    """How cached features lie in pairs (a side that the corpus lacks has 0), and the grid the model was trained on."""

    num_regions: int
    token_channels: int
    region_grid: int | None = None


@dataclass(frozen=True)
class BuildVectorEncoder:
    """Builds the encoder inside an actor. `cached` says how features lie in the rows, None = they hold pixels."""

    place: ModelPlace
    fingerprint: str
    sides: tuple[str, ...]
    section: EmbedSection
    cached: FeatureShapes | None
    provenance: dict[str, Any]

    def __call__(self) -> VectorEncoder:
        """Load the model on the actor's device; its fingerprint is checked on loading."""
        device = "cuda" if self.section.encoder_gpus else "cpu"
        backbones = () if self.cached is not None else self.sides
        model, facts = load_model(self.place, device=device, backbones=backbones, expected=self.fingerprint)
        run_all_in(
            self.section.precision, model.image_backbone, model.text_backbone, compiled=self.section.compile
        )
        regions = None if facts.region_grid is None else facts.region_grid**2
        return VectorEncoder(
            model,
            self.section,
            self.provenance,
            sides=self.sides,
            num_regions=regions,
            region_shape=facts.pair_regions if self.section.regions else None,
            cached=self.cached,
        )


class VectorEncoder:
    """Turns rows into embeddings; a `plane.chunks.Encoder`."""

    def __init__(
        self,
        model: VectorModel,
        section: EmbedSection,
        provenance: dict[str, Any],
        *,
        sides: Sequence[str] = (IMAGE, TEXT),
        num_regions: int | None,
        region_shape: tuple[int, int] | None = None,
        cached: FeatureShapes | None = None,
    ) -> None:
        """`num_regions` is the model's, None where it embeds pictures whole; `cached` as in `BuildVectorEncoder`.

        `region_shape` [R, D] of the projected regions where they are kept.
        """
        self.model, self.section, self.sides, self.cached = model, section, tuple(sides), cached
        dimension = model.blocks[-1].stop
        self.image_schema = image_embeddings_schema(
            dimension=dimension,
            num_regions=num_regions,
            region_bytes=2 * math.prod(region_shape) if region_shape else None,
            metadata=provenance | ({"region_shape": region_shape} if region_shape else {}),
        )
        self.keeps_regions = region_shape is not None
        self.text_schema = text_embeddings_schema(dimension=dimension, metadata=provenance)

    def bring(self, table: pa.Table) -> torch.Tensor | None:
        """The pixels of the rows where the model is; None where it has no use for pixels."""
        image = self.model.image_backbone
        if self.cached is not None or image is None or IMAGE not in self.sides:
            return None
        return bring_pixels(table, image)

    def encode(self, table: pa.Table, brought: torch.Tensor | None = None) -> EncodedChunk:
        """Encode the sides; an item with a vector that is not finite is rejected on both of them."""
        if table.num_rows == 0:
            empty = {IMAGE: self.image_schema.empty_table(), TEXT: self.text_schema.empty_table()}
            return EncodedChunk({side: empty[side] for side in self.sides})
        features = self._features(table)
        outputs: dict[str, pa.Table] = {}
        good_N = np.ones(table.num_rows, bool)
        items_M = _caption_items(table)
        if IMAGE in self.sides:
            vectors_ND, side = self._images(table, features, brought)
            outputs[IMAGE], good_N = self._image_rows(table, vectors_ND, side)
        if TEXT in self.sides:
            vectors_MD = self._texts(table, features)
            outputs[TEXT] = self._text_rows(table, items_M, vectors_MD)
            good_N[items_M[~_finite(vectors_MD)]] = False
        if good_N.all():
            return EncodedChunk(outputs)
        finite = {IMAGE: good_N, TEXT: good_N[items_M]}
        kept = {side: rows.filter(pa.array(finite[side])) for side, rows in outputs.items()}
        return EncodedChunk(kept, _not_finite(table, good_N))

    def _features(self, table: pa.Table) -> PairFeatures | None:
        if self.cached is None:
            return None
        return load_pair_features(
            [table],
            num_regions=self.cached.num_regions,
            token_channels=self.cached.token_channels,
            region_grid=self.cached.region_grid,
        )

    def _images(
        self, table: pa.Table, features: PairFeatures | None, brought: torch.Tensor | None
    ) -> tuple[npt.NDArray[np.float16], SideOutput]:
        if features is None:
            assert self.model.image_backbone is not None
            pixels_BHW3 = bring_pixels(table, self.model.image_backbone) if brought is None else brought
            vectors_BD, side = self.model.encode_images(pixels_BHW3)
        else:
            assert isinstance(self.model, DualEncoder)
            vectors_BD, side = self.model.embed_regions(shared_tensor(features.regions_NRD[:]))
        return _half(vectors_BD), side

    def _texts(self, table: pa.Table, features: PairFeatures | None) -> npt.NDArray[np.float16]:
        parts = [np.empty((0, self.model.blocks[-1].stop), np.float16)]
        groups = self._encoded_captions(table) if features is None else self._embedded_tokens(features)
        return np.concatenate(parts + [_half(vectors_BD) for vectors_BD in groups])

    def _encoded_captions(self, table: pa.Table) -> Iterator[torch.Tensor]:
        captions = [caption for row in table["captions"].to_pylist() for caption in row]
        for start in range(0, len(captions), _CAPTION_ROWS):
            yield self.model.encode_texts(captions[start : start + _CAPTION_ROWS])[0]

    def _embedded_tokens(self, features: PairFeatures) -> Iterator[torch.Tensor]:
        assert isinstance(self.model, DualEncoder)
        for start in range(0, features.num_captions, _CAPTION_ROWS):
            rows = np.arange(start, min(start + _CAPTION_ROWS, features.num_captions))
            yield self.model.embed_tokens(*features.padded_tokens(rows))[0]

    def _image_rows(
        self, table: pa.Table, vectors_ND: npt.NDArray[np.float16], side: SideOutput
    ) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
        """The rows, and which of them are finite."""
        good_N = _finite(vectors_ND)
        made: dict[str, Any] = {"vector": _fixed_list(vectors_ND)}
        has_weights = self.section.region_weights and side.weights_BR is not None
        made["region_weights"] = _fixed_list(_half(side.weights_BR)) if has_weights else None
        made["thumbnail"] = table["thumbnail"] if self.section.thumbnails else None
        if self.keeps_regions:
            regions_NX = _half(side.regions_BRD).reshape(len(vectors_ND), -1)
            good_N = good_N & _finite(regions_NX)
            made["regions"] = pa.Array.from_buffers(
                self.image_schema.field("regions").type, len(regions_NX), [None, pa.py_buffer(regions_NX)]
            )
        return _rows(self.image_schema, made, table), good_N

    def _text_rows(
        self, table: pa.Table, items_M: npt.NDArray[np.int64], vectors_MD: npt.NDArray[np.float16]
    ) -> pa.Table:
        items = pa.array(items_M)
        item_ids = table["id"].take(items)
        starts_N = np.concatenate([[0], np.cumsum(np.bincount(items_M, minlength=table.num_rows))[:-1]])
        numbers = pa.array(np.arange(len(items_M)) - starts_N[items_M]).cast(pa.string())
        made = {
            "id": pc.binary_join_element_wise(item_ids, numbers, "#"),
            "item_id": item_ids,
            "caption": pc.list_flatten(table["captions"]),
            "vector": _fixed_list(vectors_MD),
            "labels": table["labels"].take(items),
        }
        return _rows(self.text_schema, made, table)


def _caption_items(table: pa.Table) -> npt.NDArray[np.int64]:
    """The row of every caption's item, in the captions' order."""
    counts_N = pc.list_value_length(table["captions"]).to_numpy().astype(np.int64)
    return np.repeat(np.arange(table.num_rows, dtype=np.int64), counts_N)


def _rows(schema: pa.Schema, made: dict[str, Any], table: pa.Table) -> pa.Table:
    """Columns that were made, or None for a column of nulls, or else the input's, in the schema's order."""
    length = len(made["vector"])
    columns = []
    for field in schema:
        values = made.get(field.name, table[field.name] if field.name not in made else None)
        columns.append(pa.nulls(length, field.type) if values is None else values)
    return pa.table(columns, schema=schema)


def _finite(vectors_ND: npt.NDArray[np.float16]) -> npt.NDArray[np.bool_]:
    return np.atleast_1d(np.isfinite(vectors_ND).all(axis=1))


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
