"""IMFA, inter-modality fusion based attention, and its two baselines (Chakraborty et al., ICIP 2021; SCIENCE 3).

A RECONSTRUCTION: of the paper only the abstract is known to us (inner product, attention over regions from the fusion of
image and text, no GAN, better than self-attention). Three methods that share everything but the attention:

    ZS_INN       attention="mean"    image = unit( mean_r x_r )
    ZS_INN_SELF  attention="self"    image = unit( sum_r a_r x_r ),   a = softmax(w . tanh(W x_r))
    ZS_INN_FUSE  attention="fused"   image = unit( sum_r a_r(t) x_r ), a(t) = softmax(w . tanh(fuse(W_r x_r, W_t s)))   = IMFA
    all          x_r = image trunk of region r,  s = mean state of the text trunk,  text = t = unit(s),  score = <image, text>

The fused image vector exists for a pair only. So the contrast is over v_i(t_j) for EVERY pair of the batch, negatives
with the negative's text: an image fused with its own text meets no other text, which would give the answer away.
`score_pairs` is that score. `vectors()` needs one vector per image: a text-free attention (as ZS_INN_SELF's) is distilled
from the fused one, KL(a_i(t_i) || a_i), with both the teacher and x_r detached, so that distilling changes nothing else.
Every number says which of the two it came from. Shortlists and blocks of pairs: models/cross_scoring.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from zscmr_ray.losses.contrast import SameClass
from zscmr_ray.losses.fgcl import Negatives
from zscmr_ray.losses.relations import Relations
from zscmr_ray.models.base import REGION, AlignmentModel, SideOutput, VectorBlock
from zscmr_ray.models.contrast import Contrast, ContrastKind, ContrastSettings
from zscmr_ray.models.fused_attention import Fusion, PairScores, RegionAttention, widened
from zscmr_ray.models.noise import RowNoise
from zscmr_ray.models.trunks import ImageTrunk, ImageTrunkKind, TextTrunk, TextTrunkKind, masked_mean

AttentionKind = Literal["mean", "self", "fused"]


@dataclass(frozen=True, slots=True)
class InnSettings:
    """Every hyper-parameter of the three methods and their loss; A = attention_width, m = hinge_margin."""

    image_channels: int
    text_channels: int
    width: int = 512
    image_trunk: ImageTrunkKind = "linear"
    text_trunk: TextTrunkKind = "linear"
    attention: AttentionKind = "fused"
    attention_width: int = 64
    fusion: Fusion = "hadamard"
    contrast: ContrastKind = "hinge"
    negatives: Negatives = "hardest"
    same_class: SameClass = "negative"
    hinge_margin: float = 0.2
    temperature: float = 0.1
    learned_temperature: bool = False
    distill_weight: float = 1.0

    @property
    def distills(self) -> bool:
        """Whether a text-free attention is distilled from the fused one."""
        return self.attention == "fused" and self.distill_weight > 0


class Inn(AlignmentModel):
    """Both trunks, the attention and the contrast."""

    def __init__(self, settings: InnSettings) -> None:
        super().__init__()
        self.settings = settings
        width, narrow = settings.width, settings.attention_width
        self.image_trunk = ImageTrunk(settings.image_channels, width, kind=settings.image_trunk)
        self.text_trunk = TextTrunk(settings.text_channels, width, kind=settings.text_trunk)
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
        self.scores_pairs = settings.attention == "fused"
        has_free = settings.attention == "self" or settings.distills
        self.attention = RegionAttention(width, narrow) if has_free else None
        if settings.attention == "fused":
            self.key, self.query = nn.Linear(width, narrow), nn.Linear(width, narrow)
            self.pairs = PairScores(narrow, fusion=settings.fusion)

    @property
    def blocks(self) -> tuple[VectorBlock, ...]:
        """One block."""
        return (VectorBlock(REGION, 0, self.settings.width),)

    def encode_image(self, regions_BRD: Tensor, *, noise: RowNoise | None = None) -> SideOutput:
        """Encode region features [B, R, image_channels] to the text-free vector, and in IMFA to what pairs need.

        Without a text-free attention (ZS_INN, IMFA with distill_weight 0) the vector is the mean's, and no weights are told.
        """
        del noise  # nothing here is random
        dtype = next(self.parameters()).dtype
        lengths_B = torch.full(regions_BRD.shape[:1], regions_BRD.shape[1], device=regions_BRD.device)
        states_BRD = self.image_trunk(regions_BRD.to(dtype), lengths_B)
        fused = self.settings.attention == "fused"
        log_weights_BR = weights_BR = None
        pooled_BD = widened(states_BRD).mean(dim=1)
        if self.attention is not None:
            read_BRD = states_BRD.detach() if fused else states_BRD
            log_weights_BR = self.attention(read_BRD)
            weights_BR = log_weights_BR.exp()
            pooled_BD = torch.einsum("br,brd->bd", weights_BR, widened(read_BRD))
        return SideOutput(
            region_BD=functional.normalize(pooled_BD, dim=1),
            weights_BR=weights_BR,
            regions_BRD=states_BRD if fused else None,
            keys_BRA=self.key(states_BRD) if fused else None,
            log_weights_BR=log_weights_BR if fused else None,
        )

    def encode_text(
        self, tokens_BLD: Tensor, lengths_B: Tensor, *, noise: RowNoise | None = None
    ) -> SideOutput:
        """Encode token states [B, L, text_channels]; lengths [B] at least 1, the rest is padding."""
        del noise
        dtype = next(self.parameters()).dtype
        lengths_B = lengths_B.to(tokens_BLD.device)
        state_BD = masked_mean(self.text_trunk(tokens_BLD.to(dtype), lengths_B), lengths_B)
        fused = self.settings.attention == "fused"
        return SideOutput(
            region_BD=functional.normalize(state_BD, dim=1),
            query_BA=self.query(state_BD.to(dtype)) if fused else None,
        )

    def loss(
        self, image: SideOutput, text: SideOutput, relations: Relations, prior_logits_BC: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the contrast of all pairs, and for IMFA distill_weight x KL(fused || text-free attention).

        Parts: "contrast", "distill", "temperature". In IMFA the contrast sees the fused score only.
        """
        del prior_logits_BC
        assert image.region_BD is not None and text.region_BD is not None
        if not self.scores_pairs:
            similarity_BB = widened(image.region_BD) @ widened(text.region_BD).T
            return self._contrasted(similarity_BB, relations)
        assert image.regions_BRD is not None and image.keys_BRA is not None and text.query_BA is not None
        similarity_BB, own_BR = self.pairs(
            image.regions_BRD, image.keys_BRA, text.region_BD, text.query_BA, with_own=True
        )
        parts = self._contrasted(similarity_BB, relations)
        if self.settings.distills:
            assert image.log_weights_BR is not None
            distill = (torch.xlogy(own_BR, own_BR) - own_BR * image.log_weights_BR).sum(dim=1).mean()
            parts["total"] = parts["total"] + self.settings.distill_weight * distill
            parts["distill"] = distill.detach()
        return parts

    def _contrasted(self, similarity_BB: Tensor, relations: Relations) -> dict[str, Tensor]:
        total, temperature = self.contrast(similarity_BB, relations)
        return {"total": total, "contrast": total.detach(), "temperature": temperature}

    def loss_parameters(self) -> Iterable[nn.Parameter]:
        """The fused attention's score and a learned temperature."""
        yield from self.contrast.parameters()
        if self.scores_pairs:
            yield from self.pairs.parameters()

    def score_pairs(self, image: SideOutput, text: SideOutput) -> Tensor:
        """Score every image with every text by the attention fused from the two; IMFA only."""
        assert image.regions_BRD is not None and image.keys_BRA is not None, "images of another method"
        assert text.region_BD is not None and text.query_BA is not None, "texts of another method"
        scores_NM: Tensor = self.pairs(image.regions_BRD, image.keys_BRA, text.region_BD, text.query_BA)[0]
        return scores_NM

    def score_regions(self, regions_NRD: Tensor, text: SideOutput) -> Tensor:
        """Score kept projected regions with one text, [N]: `score_pairs` from what an index holds of an image."""
        assert text.region_BD is not None and text.query_BA is not None, "texts of another method"
        assert len(text.region_BD) == 1, "one text"
        with torch.inference_mode():
            keys_NRA = self.key(regions_NRD)
        return self.pairs.one_text(regions_NRD, keys_NRA, text.region_BD[0], text.query_BA[0])

    def architecture(self) -> dict[str, object]:
        """The settings as plain values, with "method"."""
        return {"method": "inn", **asdict(self.settings)}
