"""Frozen backbones by name: `efficientnet-lite0` and `minilm` (packaged), `tiny` (random), `hf:<id or folder>`.

Texts also `words:<file>` (word2vec, GloVe) and `static:<text backbone>`, the static inputs of a trained BiGRU.

Only what is asked for is imported, so a process that uses `tiny` never pays for the others.
"""

from __future__ import annotations

from pathlib import Path

import torch

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.backbones.base import (
    ImageBackbone,
    ImageFeatures,
    ImageSpec,
    TextBackbone,
    TextFeatures,
    TokenBatch,
    synonyms,
)

__all__ = [
    "ImageBackbone",
    "ImageFeatures",
    "ImageSpec",
    "TextBackbone",
    "TextFeatures",
    "TokenBatch",
    "load_image_backbone",
    "load_text_backbone",
    "synonyms",
]

HUGGING_FACE_PREFIX = "hf:"
WORDS_PREFIX = "words:"
STATIC_PREFIX = "static:"


def load_image_backbone(name: str, *, device: str | torch.device = "cpu") -> ImageBackbone:
    """Load the frozen image backbone called `name` onto `device`.

    Raises ConfigError for an unknown name or a model that is not one, MissingPackageError with the command to run.
    """
    if name.startswith(HUGGING_FACE_PREFIX):
        from zscmr_ray.models.backbones.huggingface import load_huggingface_image

        return load_huggingface_image(name.removeprefix(HUGGING_FACE_PREFIX)).to(device)
    match name:
        case "efficientnet-lite0":
            from zscmr_ray.models.backbones.efficientnet import load_efficientnet_lite0

            return load_efficientnet_lite0().to(device)
        case "tiny":
            from zscmr_ray.models.backbones.tiny import TinyImage

            return TinyImage().to(device)
        case _:
            raise _unknown("image", name, "efficientnet-lite0, tiny or hf:<model id or folder>")


def load_text_backbone(
    name: str, *, device: str | torch.device = "cpu", max_tokens: int = 64
) -> TextBackbone:
    """Load the frozen text backbone called `name` onto `device`; captions are cut to `max_tokens` tokens.

    Raises ConfigError for an unknown name or a model that is not one, MissingPackageError with the command to run.
    """
    if name.startswith(HUGGING_FACE_PREFIX):
        from zscmr_ray.models.backbones.huggingface import load_huggingface_text

        return load_huggingface_text(name.removeprefix(HUGGING_FACE_PREFIX), max_tokens=max_tokens).to(device)
    if name.startswith(WORDS_PREFIX):
        from zscmr_ray.models.backbones.words import WordText

        return WordText(Path(name.removeprefix(WORDS_PREFIX)), max_tokens=max_tokens).to(device)
    if name.startswith(STATIC_PREFIX):
        from zscmr_ray.models.backbones.words import load_static

        return load_static(name.removeprefix(STATIC_PREFIX), max_tokens=max_tokens).to(device)
    match name:
        case "minilm":
            from zscmr_ray.models.backbones.minilm import load_minilm

            return load_minilm(max_tokens=max_tokens).to(device)
        case "tiny":
            from zscmr_ray.models.backbones.tiny import TinyText

            return TinyText(max_tokens=max_tokens).to(device)
        case _:
            raise _unknown(
                "text", name, "minilm, tiny, hf:<model id or folder>, words:<file> or static:<text backbone>"
            )


def _unknown(side: str, name: str, known: str) -> ConfigError:
    return ConfigError(f"unknown {side} backbone", got=name, expected=known)
