"""A frozen image backbone, a frozen text backbone and a trained alignment network, for inference. Not for training.

Features pass through float16 on their way to the alignment network, as they do when preprocess caches them, so that a
vector does not depend on whether its features came from a cache or from pixels.

Legend: B batch, H W pixels, R image regions, L text tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from zscmr_ray.models.backbones import ImageBackbone, TextBackbone

if TYPE_CHECKING:
    from zscmr_ray.models.base import AlignmentModel, SideOutput, VectorBlock


class DualEncoder(nn.Module):
    """Pixels or captions in, retrieval vectors out; always in eval mode, never with a gradient."""

    def __init__(
        self,
        image_backbone: ImageBackbone | None,
        text_backbone: TextBackbone | None,
        model: AlignmentModel,
        *,
        region_grid: int,
    ) -> None:
        """Join the parts; a backbone may be absent (None) where only the other side, or cached features, are encoded."""
        super().__init__()
        self.image_backbone = image_backbone
        self.text_backbone = text_backbone
        self.model = model
        self.region_grid = region_grid
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: retrieval vectors are deterministic (SCIENCE 2, defect 4)."""
        del mode
        return super().train(False)

    @property
    def blocks(self) -> tuple[VectorBlock, ...]:
        """The unit blocks of a vector."""
        return self.model.blocks

    def encode_images(self, pixels_BHW3: Tensor) -> tuple[Tensor, SideOutput]:
        """Encode uint8 pixels [B, size, size, 3] to vectors [B, D] and the side output they came from."""
        assert self.image_backbone is not None, "this encoder was built without an image backbone"
        return self.embed_regions(self.image_backbone(pixels_BHW3, region_grid=self.region_grid).regions_BRD)

    def encode_texts(self, captions: Sequence[str]) -> tuple[Tensor, SideOutput]:
        """Encode captions to vectors [B, D] and the side output they came from."""
        assert self.text_backbone is not None, "this encoder was built without a text backbone"
        features = self.text_backbone(captions)
        return self.embed_tokens(features.tokens_BLD, features.lengths_B)

    def embed_regions(self, regions_BRD: Tensor) -> tuple[Tensor, SideOutput]:
        """Embed cached image features [B, R, D], float16 or float32."""
        with torch.inference_mode():
            output = self.model.network.encode_image(self._as_cached(regions_BRD))
            return self.model.vectors(output), output

    def embed_tokens(self, tokens_BLD: Tensor, lengths_B: Tensor) -> tuple[Tensor, SideOutput]:
        """Embed cached token states [B, L, D], float16 or float32, of true lengths [B]."""
        with torch.inference_mode():
            output = self.model.network.encode_text(self._as_cached(tokens_BLD), lengths_B.to(self._device))
            return self.model.vectors(output), output

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _as_cached(self, features_BXD: Tensor) -> Tensor:
        return features_BXD.to(self._device).half().float()
