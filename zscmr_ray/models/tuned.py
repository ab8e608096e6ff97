"""An alignment network with encoders that are trained with it, end to end from pixels and captions, as FGAN is meant.

    pixels -> frozen layers | trained layers -> regions -> alignment network     the text side alike, from token ids

What it takes for regions or tokens is what the feed gives (backbones/trainable.py, engine/feeding.py); everything else is
the alignment network's. The state dict holds that network and the trained tensors, never a frozen one.

    "encoders": {"image": {"id", "weights_sha256", "blocks", "region_grid"}, "text": {"id", "weights_sha256", "blocks",
    "max_tokens"}}      beside the network's own settings in `architecture()`: what an encoder was before it was trained
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from zscmr_ray.errors import RefusedError
from zscmr_ray.losses.relations import Relations
from zscmr_ray.models.backbones import (
    ImageBackbone,
    TextBackbone,
    load_image_backbone,
    load_text_backbone,
)
from zscmr_ray.models.backbones.base import tensors_sha256
from zscmr_ray.models.backbones.trainable import TrainedImage, TrainedText, recompute_blocks
from zscmr_ray.models.base import AlignmentModel, SideOutput, VectorBlock
from zscmr_ray.models.build import ENCODERS
from zscmr_ray.models.noise import RowNoise


class TunedModel(AlignmentModel):
    """The alignment network `aligned`, and the encoders that are trained; a side without one takes cached features."""

    def __init__(self, aligned: AlignmentModel, encoders: Mapping[str, Mapping[str, Any]]) -> None:
        """Load and unfreeze the encoders. Raises as their loaders do, and RefusedError for other weights than described."""
        super().__init__()
        self.aligned, self.encoders = aligned, {side: dict(facts) for side, facts in encoders.items()}
        self.scores_pairs = aligned.scores_pairs
        self.image_encoder, self.text_encoder = self.load_encoders(encoders)

    @staticmethod
    def load_encoders(
        encoders: Mapping[str, Mapping[str, Any]],
    ) -> tuple[TrainedImage | None, TrainedText | None]:
        """Load the described encoders, as they were before their training. Raises as the constructor."""
        image, text = encoders.get("image"), encoders.get("text")
        return (image and _trained_image(image)) or None, (text and _trained_text(text)) or None

    @property
    def network(self) -> AlignmentModel:
        """The alignment network over regions and tokens."""
        return self.aligned

    @property
    def blocks(self) -> tuple[VectorBlock, ...]:
        """The alignment network's."""
        return self.aligned.blocks

    def encode_image(self, regions_BRD: Tensor, *, noise: RowNoise | None = None) -> SideOutput:
        """Encode what the image side is fed with."""
        if self.image_encoder is not None:
            regions_BRD = self._as_served(self.image_encoder(regions_BRD))
        return self.aligned.encode_image(regions_BRD, noise=noise)

    def encode_text(
        self, tokens_BLD: Tensor, lengths_B: Tensor, *, noise: RowNoise | None = None
    ) -> SideOutput:
        """Encode what the text side is fed with."""
        if self.text_encoder is not None:
            lengths_B = lengths_B.to(tokens_BLD.device)
            tokens_BLD = self._as_served(self.text_encoder(tokens_BLD, lengths_B))
        return self.aligned.encode_text(tokens_BLD, lengths_B, noise=noise)

    def loss(
        self, image: SideOutput, text: SideOutput, relations: Relations, prior_logits_BC: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the alignment network's loss."""
        return self.aligned.loss(image, text, relations, prior_logits_BC)

    def loss_parameters(self) -> Iterable[nn.Parameter]:
        """The alignment network's."""
        return self.aligned.loss_parameters()

    def score_pairs(self, image: SideOutput, text: SideOutput) -> Tensor:
        """Score by the alignment network."""
        return self.aligned.score_pairs(image, text)

    def architecture(self) -> dict[str, object]:
        """The network's, with what the encoders were made from."""
        return {**self.aligned.architecture(), ENCODERS: self.encoders}

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The trained parameters of both encoders."""
        encoders = (self.image_encoder, self.text_encoder)
        return [parameter for one in encoders if one is not None for parameter in one.parameters()]

    def recompute_activations(self) -> None:
        """Let backward compute the trained blocks' activations again instead of keeping them."""
        for encoder in (self.image_encoder, self.text_encoder):
            if encoder is not None:
                recompute_blocks(encoder.backbone)

    def encoder_sha256(self) -> dict[str, str]:
        """The hash of each trained encoder as it is now: of what it was made from, and of its trained tensors."""
        found = {}
        for side, encoder in (("image", self.image_encoder), ("text", self.text_encoder)):
            if encoder is not None:
                found[side] = tensors_sha256(
                    encoder.state_dict(), before=self.encoders[side]["weights_sha256"]
                )
        return found

    def served_backbones(self) -> tuple[ImageBackbone | None, TextBackbone | None]:
        """Return the trained encoders as backbones of their own hash; None for a side that is not trained."""
        hashes = self.encoder_sha256()
        image = None if self.image_encoder is None else self.image_encoder.backbone
        text = None if self.text_encoder is None else self.text_encoder.backbone
        for side, backbone in (("image", image), ("text", text)):
            if backbone is not None:
                backbone.weights_sha256 = hashes[side]
        return image, text

    def _as_served(self, features_BXD: Tensor) -> Tensor:
        """In eval mode through half precision, as embed and the service do (models/dual_encoder.py)."""
        return features_BXD if self.training else features_BXD.half().float()


def _trained_image(facts: Mapping[str, Any]) -> TrainedImage:
    backbone = load_image_backbone(facts["id"])
    _check_weights(backbone.weights_sha256, facts)
    return TrainedImage(backbone, blocks=facts["blocks"], region_grid=facts["region_grid"])


def _trained_text(facts: Mapping[str, Any]) -> TrainedText:
    backbone = load_text_backbone(facts["id"], max_tokens=facts["max_tokens"])
    _check_weights(backbone.weights_sha256, facts)
    return TrainedText(backbone, blocks=facts["blocks"])


def _check_weights(found: str, facts: Mapping[str, Any]) -> None:
    if found == facts["weights_sha256"]:
        return
    raise RefusedError(
        f"the installed backbone {facts['id']} has other weights than when its training began",
        got=f"sha256 {found[:12]}",
        expected=f"sha256 {facts['weights_sha256'][:12]}",
        remedy="install the backbone the pairs were made with, or preprocess and train again",
    )
