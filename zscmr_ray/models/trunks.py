"""The trainable layers between frozen backbones and the two heads of each modality (SCIENCE 2, "Ours": shared trunk).

Image: Linear -> LayerNorm. Text: bidirectional GRU -> Linear -> LayerNorm. Both heads of a side read the same trunk, so
that FGCL and FGLA share parameters, as in the paper. Not the backbones (backbones/), which stay frozen.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.topk import token_mask

ImageTrunkKind = Literal["linear", "none"]
TextTrunkKind = Literal["bigru", "linear"]


class ImageTrunk(nn.Module):
    """Map region features [B, R, channels] to the model's width: Linear -> LayerNorm, or nothing at all ("none")."""

    def __init__(self, channels: int, width: int, *, kind: ImageTrunkKind = "linear") -> None:
        super().__init__()
        if kind == "none" and channels != width:
            raise ConfigError(
                "model.image_trunk='none' leaves the image backbone's width as it is",
                got=f"{channels} channels, width {width}",
                expected="equal widths",
                remedy=f"set model.image_trunk=linear or model.width={channels}",
            )
        self.project = (
            nn.Identity()
            if kind == "none"
            else nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width))
        )

    def forward(self, regions_BRD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return [B, R, width]; an image has all its regions, so that the lengths say nothing here."""
        states_BRD: Tensor = self.project(regions_BRD)
        return states_BRD


class TextTrunk(nn.Module):
    """Map token states [B, L, channels] to the model's width: BiGRU (width / 2 a direction) -> Linear -> LayerNorm.

    The GRU runs over packed sequences: its backward direction starts at each row's last true token, not in the padding.
    """

    def __init__(self, channels: int, width: int, *, kind: TextTrunkKind = "bigru") -> None:
        super().__init__()
        if kind == "bigru" and width % 2:
            raise ConfigError("model.width must be even for the BiGRU", got=width, remedy=f"use {width + 1}")
        self.gru = (
            nn.GRU(channels, width // 2, batch_first=True, bidirectional=True) if kind == "bigru" else None
        )
        self.project = nn.Sequential(
            nn.Linear(channels if self.gru is None else width, width), nn.LayerNorm(width)
        )

    def forward(self, tokens_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return [B, L, width], 0 from each row's length on; lengths are at least 1."""
        mask_BL1 = token_mask(lengths_B, tokens_BLD.shape[1])[:, :, None]
        # Zeroed first, not only at the end: NaN in padding would reach the weights' gradient as 0 * NaN.
        states_BLD = tokens_BLD.masked_fill(~mask_BL1, 0)
        if self.gru is not None:
            packed = nn.utils.rnn.pack_padded_sequence(
                states_BLD, lengths_B.cpu(), batch_first=True, enforce_sorted=False
            )
            states_BLD, _ = nn.utils.rnn.pad_packed_sequence(
                self.gru(packed)[0], batch_first=True, total_length=tokens_BLD.shape[1]
            )
        states_BLD = self.project(states_BLD)
        return states_BLD.masked_fill(~mask_BL1, 0)


def masked_mean(tokens_BLD: Tensor, lengths_B: Tensor) -> Tensor:
    """Average the true tokens of each row: [B, D] float32; what lies in the padding does not matter."""
    mask_BL1 = token_mask(lengths_B, tokens_BLD.shape[1])[:, :, None]
    total_BD = tokens_BLD.float().masked_fill(~mask_BL1, 0).sum(dim=1)
    return total_BD / lengths_B.to(total_BD.dtype)[:, None]
