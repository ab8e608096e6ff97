"""Queries to vectors: captions and pictures through the model that embedded the corpus, and in the same way.

What it is: cleaning, decoding with caps, and batched encoding on one device. What it is not: weighing (scoring.py) or
batching across requests (batcher.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from zscmr_ray.data.captions import clean_captions
from zscmr_ray.data.decode import decode_image
from zscmr_ray.data.records import ImageRejected
from zscmr_ray.engine.vector_model import ModelPlace, load_model
from zscmr_ray.errors import DataError
from zscmr_ray.models.base import VectorBlock

FloatArray = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


class Encoder(Protocol):
    """What the service needs of an encoder; tests bring a small one."""

    fingerprint: str
    label_weight: float
    blocks: tuple[VectorBlock, ...]

    def clean(self, text: str) -> str:
        """The text as the corpus's captions were cleaned; DataError when nothing is left."""
        ...

    def decode(self, data: bytes) -> Pixels:
        """The picture's model crop, uint8 [size, size, 3]; DataError for bytes that are no usable picture."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Unit-block vectors [B, D]."""
        ...

    def encode_images(self, pixels: Sequence[Pixels]) -> FloatArray:
        """Unit-block vectors [B, D]."""
        ...


class ModelEncoder:
    """The encoder of a model, a checkpoint's or a pretrained one. Raises as `load_model`."""

    def __init__(self, place: ModelPlace, *, max_pixels: int, device: str = "cpu") -> None:
        self._model, facts = load_model(place, device=device)
        self._max_pixels = max_pixels
        self._device = device
        self.fingerprint = facts.fingerprint
        self.label_weight = facts.label_weight
        self.blocks = tuple(VectorBlock(b.name, b.start, b.stop) for b in facts.blocks)
        assert self._model.image_backbone is not None, "load_model loads both sides"
        self._spec = self._model.image_backbone.spec

    def clean(self, text: str) -> str:
        """Collapse white space and control characters; DataError when nothing is left."""
        cleaned = clean_captions([text])
        if not cleaned:
            raise DataError("the query text is empty", got=repr(text[:80]), expected="at least one word")
        return cleaned[0]

    def decode(self, data: bytes) -> Pixels:
        """Decode a picture after checking its pixel count; DataError for bytes that are no usable picture."""
        try:
            decoded = decode_image(
                data,
                size_px=self._spec.size_px,
                crop_fraction=self._spec.crop_fraction,
                interpolation=self._spec.interpolation,
                fit=self._spec.fit,
                max_pixels=self._max_pixels,
                thumbnail_px=None,
            )
        except ImageRejected as error:
            raise DataError(
                "the query picture cannot be used",
                got=f"{error.code}: {error.reason}",
                expected=f"a whole JPEG, PNG, WebP, GIF, BMP or TIFF of at most {self._max_pixels} pixels",
            ) from error
        return decoded.pixels_HW3

    def encode_texts(self, texts: Sequence[str]) -> FloatArray:
        """Encode cleaned texts to unit-block vectors [B, D]."""
        return _array(self._model.encode_texts(texts)[0])

    def encode_images(self, pixels: Sequence[Pixels]) -> FloatArray:
        """Encode decoded pictures to unit-block vectors [B, D]."""
        return _array(self._model.encode_images(torch.from_numpy(np.stack(pixels)).to(self._device))[0])


def _array(vectors_BD: torch.Tensor) -> FloatArray:
    array: FloatArray = vectors_BD.float().cpu().numpy()
    return array
