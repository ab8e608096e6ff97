"""What a model with trained encoders is fed with: pixels of kept images, or the states of the frozen layers below.

    image bytes -> decode, crop (as preprocess does) -> frozen layers, once -> memory -> trained layers, each step
    captions    -> token ids                                                -> trained text encoder

The crop of a picture never changes, so the states of the layers that are not trained do not either: they are kept in
memory up to `train.activation_cache_bytes`, or made again, with the same bits. Rows, order and everything else of a
training are those of cached features (data/pairs.py). Thumbnails are never used.

Legend: B batch, N items, M captions, L text tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from zscmr_ray.config import ModelSection
from zscmr_ray.data.decode import decode_image
from zscmr_ray.data.image_bytes import ImageBytes
from zscmr_ray.data.pairs import COLUMNS, Keep, PairFeatures, Rows, load_pair_features
from zscmr_ray.data.records import ImageRejected
from zscmr_ray.errors import DataError
from zscmr_ray.models.backbones import TextBackbone
from zscmr_ray.models.backbones.trainable import TrainedImage
from zscmr_ray.models.tuned import TunedModel

IMAGE, TEXT = "image", "text"


def trained_encoders(model: ModelSection, info: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Describe the encoders that are trained, as `TunedModel` takes them; `info` is the pairs' manifest's."""
    found: dict[str, dict[str, Any]] = {}
    if model.image_blocks:
        grid = model.region_grid or info["region_grid"]
        found[IMAGE] = _identity(info["image_backbone"], model.image_blocks) | {"region_grid": grid}
    if model.text_blocks:
        max_tokens = info["max_tokens"]
        found[TEXT] = _identity(info["text_backbone"], model.text_blocks) | {"max_tokens": max_tokens}
    return found


def _identity(backbone: Mapping[str, Any], blocks: object) -> dict[str, Any]:
    return {"id": backbone["id"], "weights_sha256": backbone["weights_sha256"], "blocks": blocks}


class ImageFeed:
    """Pictures by number to what the trained image encoder takes; safe to call from several threads."""

    def __init__(self, encoder: TrainedImage, *, max_pixels: int, cache_bytes: int = 0) -> None:
        self.encoder, self.images = encoder, ImageBytes()
        self._max_pixels, self._free_bytes = max_pixels, cache_bytes
        self._kept: dict[int, Tensor] = {}
        self._lock = threading.Lock()
        self._decoders = ThreadPoolExecutor(max(1, torch.get_num_threads()), "zscmr-decode")

    def __call__(self, numbers: npt.NDArray[np.int64]) -> Tensor:
        """Return the fed rows [B, ...] on the CPU. Raises DataError for a picture that cannot be decoded."""
        with self._lock:
            missing = [number for number in dict.fromkeys(numbers.tolist()) if number not in self._kept]
            made: dict[int, Tensor] = {}
            if missing:
                pixels_BHW3 = torch.from_numpy(np.stack(list(self._decoders.map(self._pixels, missing))))
                fed_B = self.encoder.feed(pixels_BHW3.to(self.encoder.backbone.device)).cpu()
                made = dict(zip(missing, fed_B.unbind(), strict=True))
            rows = torch.stack([made[n] if n in made else self._kept[n] for n in numbers.tolist()])
            for number, row in made.items():
                if row.nbytes > self._free_bytes:
                    break
                self._free_bytes -= row.nbytes
                # A row of its own: a view would keep the whole batch.
                self._kept[number] = row.clone()
            return rows

    def _pixels(self, number: int) -> npt.NDArray[np.uint8]:
        spec = self.encoder.backbone.spec
        try:
            return decode_image(
                self.images[number],
                size_px=spec.size_px,
                crop_fraction=spec.crop_fraction,
                interpolation=spec.interpolation,
                fit=spec.fit,
                max_pixels=self._max_pixels,
                thumbnail_px=None,
            ).pixels_HW3
        except ImageRejected as error:
            raise DataError(
                "a kept image of the pairs cannot be decoded",
                got=f"row {number} of those read: {error.code}: {error.reason}",
                expected="the bytes that preprocess decoded",
                remedy="data.max_pixels as for preprocess, or run `zscmr preprocess --overwrite`",
            ) from error


@dataclass(frozen=True, eq=False)
class FedPairs(PairFeatures):
    """Items whose image or text side is fed to a trained encoder; `image_numbers_N` are their pictures' in the feed."""

    image_feed: ImageFeed | None
    image_numbers_N: Rows
    tokenizer: TextBackbone | None

    def select(self, rows: npt.ArrayLike) -> FedPairs:
        """Return some items, in the order given, with the same feed."""
        numbers_N = self.image_numbers_N[np.asarray(rows, np.int64)]
        return fed_pairs(super().select(rows), self.image_feed, numbers_N, self.tokenizer)

    def image_inputs(self, rows: npt.ArrayLike) -> Tensor:
        """Return states or pixels of some items; regions where the image side is frozen."""
        if self.image_feed is None:
            return super().image_inputs(rows)
        return self.image_feed(self.image_numbers_N[np.asarray(rows, np.int64)])

    def padded_tokens(self, captions_B: npt.ArrayLike) -> tuple[Tensor, Tensor]:
        """Return token ids [B, L] and lengths of some captions; cached token states where the text side is frozen."""
        if self.tokenizer is None:
            return super().padded_tokens(captions_B)
        texts = self._texts_M
        batch = self.tokenizer.tokenize([texts[place] for place in np.asarray(captions_B, np.int64)])
        return batch.ids_BL, batch.lengths_B

    @cached_property
    def _texts_M(self) -> list[str]:
        return [text for texts_of_item in self.captions for text in texts_of_item]


def fed_pairs(
    features: PairFeatures, feed: ImageFeed | None, numbers_N: Rows, tokenizer: TextBackbone | None
) -> FedPairs:
    """Add what feeds trained encoders to features in memory."""
    columns = {field.name: getattr(features, field.name) for field in fields(PairFeatures)}
    return FedPairs(**columns, image_feed=feed, image_numbers_N=numbers_N, tokenizer=tokenizer)


@dataclass(frozen=True)
class Feed:
    """How tables of pairs are read for a model: which columns, and what becomes of its kept images."""

    image: TrainedImage | None = None
    text: TextBackbone | None = None
    max_pixels: int = 0
    cache_bytes: int = 0
    keeps_regions: bool = False
    """Whether cached regions are read beside pictures (the baselines of an evaluation take them)."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of pairs that are read."""
        if self.image is None:
            return COLUMNS
        return (*(name for name in COLUMNS if name != "regions" or self.keeps_regions), "image")

    def load(
        self,
        tables: Iterable[pa.Table],
        *,
        num_regions: int,
        token_channels: int,
        keep: Keep | None = None,
        region_grid: int | None = None,
        memory_bytes: int | None = None,
    ) -> PairFeatures:
        """Turn tables into features as `data.pairs.load_pair_features` does, fed where an encoder is trained."""
        feed = None
        if self.image is not None:
            feed = ImageFeed(self.image, max_pixels=self.max_pixels, cache_bytes=self.cache_bytes)
            tables, keep = _with_pictures_taken(tables, feed.images, keep), None
        reads_regions = self.image is None or self.keeps_regions
        features = load_pair_features(
            tables,
            num_regions=num_regions if reads_regions else 0,
            token_channels=token_channels,
            keep=keep,
            region_grid=region_grid if reads_regions else None,
            memory_bytes=memory_bytes,
        )
        if feed is None and self.text is None:
            return features
        return fed_pairs(features, feed, np.arange(len(features)), self.text)


def make_feed(
    encoders: Mapping[str, Mapping[str, Any]], *, max_pixels: int, cache_bytes: int, device: str = "cpu"
) -> Feed:
    """Return the feed of a training; the frozen layers run on `device`. Raises as `TunedModel`."""
    # Loaded as the model itself loads them, so that both begin at the same layer.
    image, text = TunedModel.load_encoders(encoders)
    if image is not None:
        image.to(device)
    return Feed(image, None if text is None else text.backbone, max_pixels, cache_bytes)


def feed_of(model: object, *, max_pixels: int) -> Feed:
    """Return the feed of a trained model, for one pass over pairs."""
    if not isinstance(model, TunedModel):
        return Feed()
    text = None if model.text_encoder is None else model.text_encoder.backbone
    return Feed(model.image_encoder, text, max_pixels, keeps_regions=True)


def _with_pictures_taken(
    tables: Iterable[pa.Table], images: ImageBytes, keep: Keep | None
) -> Iterator[pa.Table]:
    """The wanted rows of tables, their pictures moved out of them."""
    for table in tables:
        wanted = table if keep is None else table.filter(pa.array(keep(table)))
        for chunk in wanted.column("image").chunks:
            images.extend(value.as_buffer() for value in chunk)
        yield wanted.drop_columns(["image"])
