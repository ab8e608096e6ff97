"""Random backbones of 32 channels, fixed by a seed: for tests and decode-bound benchmarks. Not for results.

They install nothing, load in milliseconds and encode thousands of rows a second, yet keep the whole contract: a 7x7
grid at 224 pixels (so that decoding costs what it costs for a real backbone), teacher logits, padded tokens.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.backbones.base import ImageBackbone, ImageSpec, TextBackbone, tensors_sha256

NUM_CHANNELS = 32
NUM_CLASSES = 16
NUM_WORDS = 8192
SEED = 20210919
WORD = re.compile(r"\w+")


class _Conv(nn.Module):
    """A stride-2 convolution and ReLU."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x_BDhw: Tensor) -> Tensor:
        return F.conv2d(x_BDhw, self.weight, stride=2, padding=1).relu_()


class TinyImage(ImageBackbone):
    """Every eighth pixel, then two random stride-2 convolutions and a random linear head of 16 classes."""

    head: Tensor

    def __init__(self) -> None:
        """Draw the weights; the same ones in every process."""
        super().__init__()
        generator = torch.Generator().manual_seed(SEED)
        weights = {
            "first": torch.randn(16, 3, 3, 3, generator=generator) / 27**0.5,
            "second": torch.randn(NUM_CHANNELS, 16, 3, 3, generator=generator) / 72**0.5,
            "head": torch.randn(NUM_CLASSES, NUM_CHANNELS, generator=generator),
        }
        self.layers = nn.Sequential(_Conv(weights["first"]), _Conv(weights["second"]))
        self.register_buffer("head", weights["head"], persistent=False)
        self.id = "tiny"
        self.weights_sha256 = tensors_sha256(weights)
        self.spec = ImageSpec(224, 0.875, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.native_grid = 7
        self.num_channels = NUM_CHANNELS
        self.num_classes = NUM_CLASSES
        self.class_names = tuple(f"tiny-{index}" for index in range(NUM_CLASSES))
        self.trained_on = "nothing: random weights"
        self.freeze()

    def _normalise(self, pixels_BHW3: Tensor) -> Tensor:
        # Sampled before they become floats: converting them all would take longer than the network.
        return super()._normalise(pixels_BHW3[:, 4::8, 4::8])

    def _encode(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        map_BDhw: Tensor = self.layers(images_B3HW)
        return map_BDhw, F.linear(map_BDhw.mean((2, 3)), self.head)

    def sequence(self) -> Sequence[nn.Module]:
        """Both convolutions."""
        return tuple(self.layers)

    def blocks(self) -> Sequence[nn.Module]:
        """Both convolutions."""
        return tuple(self.layers)


class _Words(nn.Module):
    """A table of word vectors."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)

    def forward(self, ids_BL: Tensor) -> Tensor:
        return F.embedding(ids_BL, self.table)


class TinyText(TextBackbone):
    """Each word's fixed random vector, found by its hash; an empty caption has one token of its own."""

    def __init__(self, *, max_tokens: int) -> None:
        """Draw the word vectors; `max_tokens` is at least 1."""
        super().__init__()
        if max_tokens < 1:
            raise ConfigError(
                "max tokens out of range for text backbone tiny", got=max_tokens, expected="1 or more"
            )
        generator = torch.Generator().manual_seed(SEED + 1)
        words = torch.randn(NUM_WORDS, NUM_CHANNELS, generator=generator)
        self.words = _Words(words)
        self.id = "tiny"
        self.weights_sha256 = tensors_sha256({"words": words})
        self.num_channels = NUM_CHANNELS
        self.max_tokens = max_tokens
        self.trained_on = "nothing: random weights"
        self.freeze()

    def _token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        # crc32, not hash(): Python salts hash() differently in each process.
        return [
            [
                1 + zlib.crc32(word.encode()) % (NUM_WORDS - 1)
                for word in WORD.findall(caption.lower())[: self.max_tokens]
            ]
            or [0]
            for caption in captions
        ]

    def _encode(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        tokens_BLD: Tensor = self.words(ids_BL)
        return tokens_BLD

    def blocks(self) -> Sequence[nn.Module]:
        """The table."""
        return (self.words,)
