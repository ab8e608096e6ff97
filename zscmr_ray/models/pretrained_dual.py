"""A pretrained dual encoder of Hugging Face (CLIP, SigLIP ...) as it is: pixels or captions to one unit vector each.

Not trained here; its towers as frozen backbones under our own network are backbones/huggingface.py. Pixels are resized,
cut and normalised as the model's image processor says, squashed where that squashes; texts go through its tokenizer,
padded to their true length, or to the full width that the model was trained with (SigLIP).

Legend: B batch, H W pixels, L text tokens, D embedding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zscmr_ray.errors import ConfigError
from zscmr_ray.manifest import hash_json
from zscmr_ray.models.backbones.base import ImageBackbone, ImageSpec, TextBackbone, tensors_sha256
from zscmr_ray.models.backbones.huggingface import (
    FULL_WIDTH_MODELS,
    load_weights,
    loading,
    num_positions,
    processor_spec,
)
from zscmr_ray.models.base import SideOutput, VectorBlock

GLOBAL = "global"
"""The name of the one block of such vectors."""


class PretrainedDualEncoder(nn.Module):
    """The same two calls as `DualEncoder`: pixels or captions in, unit vectors out; always in eval mode."""

    def __init__(self, source: str, model: Any, tokenizer: Any, spec: ImageSpec) -> None:
        """Wrap a loaded model; raises ConfigError when a probe shows that it gives no two vectors of one length."""
        super().__init__()
        self.id = f"hf:{source}"
        self.architecture = type(model).__name__
        self.image_backbone = _PooledImage(self.id, model, spec)
        self.text_backbone = _PooledText(self.id, model, tokenizer)
        vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
        self.weights_sha256 = tensors_sha256(model.state_dict(), vocabulary=vocabulary)
        widths = (self.image_backbone.num_channels, self.text_backbone.num_channels)
        if widths[0] != widths[1]:
            raise ConfigError(
                f"{self.id} has no common space of images and texts",
                got=f"image vectors of {widths[0]} columns, text vectors of {widths[1]}",
            )
        self.blocks = (VectorBlock(GLOBAL, 0, widths[0]),)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, as `DualEncoder` does."""
        del mode
        return super().train(False)

    @property
    def fingerprint(self) -> str:
        """The sha256 (64 hex) of all that decides a vector. Not the place it was loaded from: a copy is the same model."""
        return hash_json(
            {
                "preprocessing": asdict(self.image_backbone.spec),
                "backbones": [[self.architecture, self.weights_sha256]],
                "max_tokens": self.text_backbone.max_tokens,
                "blocks": [asdict(block) for block in self.blocks],
                "label_temperature": 1.0,
            }
        )

    def encode_images(self, pixels_BHW3: Tensor) -> tuple[Tensor, SideOutput]:
        """Encode uint8 pixels [B, size, size, 3] to unit vectors [B, D]."""
        regions_B1D = self.image_backbone(pixels_BHW3, region_grid=1).regions_BRD
        return _unit(regions_B1D[:, 0])

    def encode_texts(self, captions: Sequence[str]) -> tuple[Tensor, SideOutput]:
        """Encode captions to unit vectors [B, D]."""
        return _unit(self.text_backbone.pooled_BD(captions))


class _PooledImage(ImageBackbone):
    """The image tower: its one region is the picture's projected vector."""

    model: Any

    def __init__(self, name: str, model: Any, spec: ImageSpec) -> None:
        super().__init__()
        self.id, self.spec, self.model = name, spec, model
        self.native_grid = 1
        self.freeze()
        with torch.inference_mode():
            probe_1D11, _ = self._encode(torch.zeros(1, 3, spec.size_px, spec.size_px))
        self.num_channels = probe_1D11.shape[1]

    def _encode(self, images_B3HW: Tensor) -> tuple[Tensor, None]:
        vectors_BD = _pooled(self.model.get_image_features(pixel_values=images_B3HW), name=self.id)
        return vectors_BD[:, :, None, None], None


class _PooledText(TextBackbone):
    """The text tower: one projected vector a caption, no token states."""

    model: Any
    networks = ("_pool",)

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.id, self.model, self.tokenizer = name, model, tokenizer
        tower = getattr(model, "text_model", model)
        self.max_tokens = num_positions(tower, tokenizer)
        self.full_width = tower.config.model_type in FULL_WIDTH_MODELS
        self.freeze()
        with torch.inference_mode():
            self.num_channels = self._pool(self.tokenize(["a"]).ids_BL, None).shape[1]

    def pooled_BD(self, captions: Sequence[str]) -> Tensor:
        """Encode captions to the model's vectors, float32, not yet of unit length."""
        batch = self.tokenize(captions)
        vectors_BD = torch.zeros(len(captions), self.num_channels, device=self.device)
        for rows_n, length in self._groups(batch.lengths_B):
            mask_nL = torch.arange(length) < batch.lengths_B[rows_n, None]
            mask = None if bool(mask_nL.all()) else mask_nL.to(self.device)
            with torch.inference_mode(), self.arithmetic():
                part_nD = self._pool(batch.ids_BL[rows_n, :length].to(self.device), mask)
            vectors_BD[rows_n.to(self.device)] = part_nD.float()
        return vectors_BD

    def _token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        rows = self.tokenizer(list(captions), truncation=True, max_length=self.max_tokens)["input_ids"]
        return [row or [self._pad_id] for row in rows]

    def _groups(self, lengths_B: Tensor) -> Iterator[tuple[Tensor, int]]:
        if not self.full_width or len(lengths_B) == 0:
            yield from super()._groups(lengths_B)
            return
        # Every row is padded to full width anyway: grouping by length would only make small passes.
        size = self.cpu_rows if self.device.type == "cpu" else len(lengths_B)
        for rows_n in torch.split(torch.arange(len(lengths_B)), size):
            yield rows_n, int(lengths_B[rows_n].max())

    def _pool(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        if mask_BL is not None:
            ids_BL = ids_BL.where(mask_BL, self._pad_id)
        if self.full_width:
            padded_BP = ids_BL.new_full((len(ids_BL), self.max_tokens), self._pad_id)
            padded_BP[:, : ids_BL.shape[1]] = ids_BL
            return _pooled(self.model.get_text_features(input_ids=padded_BP), name=self.id)
        attention_BL = torch.ones_like(ids_BL) if mask_BL is None else mask_BL.long()
        found = self.model.get_text_features(input_ids=ids_BL, attention_mask=attention_BL)
        return _pooled(found, name=self.id)

    @property
    def _pad_id(self) -> int:
        return self.tokenizer.pad_token_id or 0


def load_pretrained_dual(source: str, *, device: str | torch.device = "cpu") -> PretrainedDualEncoder:
    """Load a dual encoder with its processor and tokenizer from a folder (without network) or a model id.

    Raises ConfigError for a missing folder, file or model, for one that is no dual encoder and for a processor that
    ours cannot follow; DataError for a checkpoint that lacks weights.
    """
    with loading(source, "dual encoder") as place:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        model = load_weights(AutoModel, source, place)
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise ConfigError(
                f"hf:{source} is no dual encoder",
                got=type(model).__name__,
                expected="a model of images and texts with one space for both: CLIP, SigLIP, ALIGN ...",
                remedy="one-sided models are backbones: preprocess.image_backbone or preprocess.text_backbone",
            )
        processor = AutoImageProcessor.from_pretrained(source, **place)
        spec = processor_spec(processor, name=source)
        if processor.size.get("shortest_edge") is None:
            spec = replace(spec, fit="squash")
        tokenizer = AutoTokenizer.from_pretrained(source, **place)
        encoder = PretrainedDualEncoder(source, model, tokenizer, spec)
    return encoder.to(device)


def _pooled(found: Any, *, name: str) -> Tensor:
    """The projected vectors [B, D] that get_*_features answers with: as they are, or inside an output object."""
    vectors = found if isinstance(found, Tensor) else getattr(found, "pooler_output", None)
    if not isinstance(vectors, Tensor) or vectors.dim() != 2:
        shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(found).__name__
        raise ConfigError(f"{name} gives no single vector", got=shape, expected="[B, D]")
    return vectors


def _unit(vectors_BD: Tensor) -> tuple[Tensor, SideOutput]:
    unit_BD = F.normalize(vectors_BD.float(), dim=1)
    return unit_BD, SideOutput(region_BD=unit_BD)
