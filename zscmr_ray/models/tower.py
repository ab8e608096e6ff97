"""Two towers over pooled features, the plain contrastive baseline: InfoNCE, or SupCon with same-class positives.

    image = unit(f(mean region)),  text = unit(g(mean token)),  f, g a Linear or Linear -> LayerNorm -> GELU -> Linear

In training the pooled features get Gaussian noise (in units of the row's own root mean square) and dropout, keyed by row.
No attention, no trunk, no teacher. Which loss it is: `contrast`, `same_class`, `temperature` (losses/contrast.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from zscmr_ray.losses.contrast import SameClass
from zscmr_ray.losses.fgcl import Negatives
from zscmr_ray.losses.relations import Relations
from zscmr_ray.models.base import REGION, AlignmentModel, SideOutput, VectorBlock
from zscmr_ray.models.contrast import Contrast, ContrastKind, ContrastSettings
from zscmr_ray.models.noise import RowNoise
from zscmr_ray.models.trunks import masked_mean

TowerKind = Literal["linear", "mlp"]


@dataclass(frozen=True, slots=True)
class TowerSettings:
    """Every hyper-parameter of model and loss."""

    image_channels: int
    text_channels: int
    width: int = 512
    tower: TowerKind = "linear"
    dropout: float = 0.0
    feature_noise: float = 0.0
    contrast: ContrastKind = "infonce"
    negatives: Negatives = "hardest"
    same_class: SameClass = "negative"
    hinge_margin: float = 0.2
    temperature: float = 0.1
    learned_temperature: bool = False


class Tower(nn.Module):
    """One side: pooled features to a unit vector."""

    def __init__(self, name: str, channels: int, settings: TowerSettings) -> None:
        super().__init__()
        self.name, self.settings = name, settings
        width = settings.width
        self.project = (
            nn.Linear(channels, width)
            if settings.tower == "linear"
            else nn.Sequential(
                nn.Linear(channels, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width)
            )
        )

    def forward(self, pooled_BC: Tensor, *, noise: RowNoise | None) -> Tensor:
        """Return unit vectors [B, width] float32; `noise` is needed in training where any is configured."""
        if self.training:
            pooled_BC = self._disturb(pooled_BC, noise)
        vector_BD = self.project(pooled_BC.to(next(self.parameters()).dtype))
        return functional.normalize(vector_BD.float(), dim=1)

    def _disturb(self, pooled_BC: Tensor, noise: RowNoise | None) -> Tensor:
        settings, channels, device = self.settings, pooled_BC.shape[1], pooled_BC.device
        if settings.feature_noise > 0:
            assert noise is not None, "training draws noise: pass noise=RowNoise(seed, step, rows)"
            scale_B1 = pooled_BC.square().mean(dim=1, keepdim=True).sqrt() * settings.feature_noise
            pooled_BC = pooled_BC + scale_B1 * noise.normal(f"{self.name}.feature", channels, device=device)
        if settings.dropout > 0:
            assert noise is not None, "training draws noise: pass noise=RowNoise(seed, step, rows)"
            kept_BC = noise.uniform(f"{self.name}.dropout", channels, device=device) >= settings.dropout
            pooled_BC = pooled_BC * kept_BC / (1.0 - settings.dropout)
        return pooled_BC


class TwoTowers(AlignmentModel):
    """Both towers and the contrast."""

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.image = Tower("image", settings.image_channels, settings)
        self.text = Tower("text", settings.text_channels, settings)
        self.contrast = Contrast(
            ContrastSettings(
                kind=settings.contrast,
                negatives=settings.negatives,
                same_class=settings.same_class,
                margin=settings.hinge_margin,
                temperature=settings.temperature,
                learned_temperature=settings.learned_temperature,
            )
        )

    @property
    def blocks(self) -> tuple[VectorBlock, ...]:
        """One block."""
        return (VectorBlock(REGION, 0, self.settings.width),)

    def encode_image(self, regions_BRD: Tensor, *, noise: RowNoise | None = None) -> SideOutput:
        """Encode region features [B, R, image_channels] by their mean."""
        return SideOutput(region_BD=self.image(regions_BRD.float().mean(dim=1), noise=noise))

    def encode_text(
        self, tokens_BLD: Tensor, lengths_B: Tensor, *, noise: RowNoise | None = None
    ) -> SideOutput:
        """Encode token states [B, L, text_channels] by the mean of the true ones."""
        pooled_BC = masked_mean(tokens_BLD, lengths_B.to(tokens_BLD.device))
        return SideOutput(region_BD=self.text(pooled_BC, noise=noise))

    def loss(
        self, image: SideOutput, text: SideOutput, relations: Relations, prior_logits_BC: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the contrast of the global batch; parts "contrast" and "temperature"."""
        del prior_logits_BC
        assert image.region_BD is not None and text.region_BD is not None
        total, temperature = self.contrast(image.region_BD @ text.region_BD.T, relations)
        return {"total": total, "contrast": total.detach(), "temperature": temperature}

    def loss_parameters(self) -> Iterable[nn.Parameter]:
        """A learned temperature."""
        return self.contrast.parameters()

    def architecture(self) -> dict[str, object]:
        """The settings as plain values, with "method"."""
        return {"method": "tower", **asdict(self.settings)}
