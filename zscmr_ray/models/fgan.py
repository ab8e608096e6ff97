"""FGAN, the Fine-Grained Alignment Network (Ge et al., ACM TOMM 21(10), 2025; SCIENCE 2), over frozen features.

    image regions -> trunk -> region head -> unit embedding   \\  FGCL      vector = [region ; sqrt(softmax(logits / tau))]
                           -> label head  -> logits, VAE terms /  FGLA      Total  = FGCL + FGLA
    text tokens   -> trunk -> the same two heads of its own

A head that no loss trains is not built: without FGCL no region block, without FGLA or a teacher no label block.
`FganSettings.defect` switches one defect of the released code back on; see `RELEASED`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from zscmr_ray.errors import ConfigError
from zscmr_ray.losses.fgcl import Negatives, fgcl
from zscmr_ray.losses.fgla import FglaWeights, fgla
from zscmr_ray.losses.relations import Relations
from zscmr_ray.models.base import LABEL, REGION, AlignmentModel, SideOutput, VectorBlock, build_seeded
from zscmr_ray.models.label_distribution import LabelHead
from zscmr_ray.models.noise import RowNoise
from zscmr_ray.models.regions import EvalSelection, RegionHead, Selection, SelectionKind
from zscmr_ray.models.topk import Rounding
from zscmr_ray.models.trunks import ImageTrunk, ImageTrunkKind, TextTrunk, TextTrunkKind

# The twelve released defects (SCIENCE 2) and what switching one back on means here. Defects 7, 8 and 12 are of the
# training loop: the model is unchanged and the loop reads `settings.defect`.
RELEASED: dict[int, str] = {
    1: "the pooled sum is divided by the ratio instead of k",
    2: "k = floor(ratio x length), 0 for texts under 10 tokens",
    3: "padding takes part in trunk, attention, mean, scores and k",
    4: "the selection is drawn anew at test time",
    5: "the top-k's backward pass keeps the diagonal of the Jacobian",
    6: "the top-k stores one-hots of size B x n x k x L",
    7: "frozen networks stay in train mode (training loop)",
    8: "frozen weights in every checkpoint, prior recomputed every step (training loop)",
    9: "rows without a negative count as loss 0 through the sentinel 100",
    10: "same-class non-pairs are found by distance != 0",
    11: "reconstruction and cross-KL targets are not detached",
    12: "evaluation of an untrained model (training loop)",
}


@dataclass(frozen=True, slots=True)
class FganSettings:
    """Every hyper-parameter of model and loss; the defaults are the published ones where SCIENCE 2 knows them.

    `num_classes` is the teacher's class count, 0 without a teacher. m1 = negative_margin, m2 = weak_margin, w = weak_weight.
    """

    image_channels: int
    text_channels: int
    num_classes: int = 1000
    width: int = 512
    num_heads: int = 4
    attention_dropout: float = 0.1
    latent: int = 512
    image_trunk: ImageTrunkKind = "linear"
    text_trunk: TextTrunkKind = "bigru"
    selection: SelectionKind = "topk"
    eval_selection: EvalSelection = "hard"
    ratio: float = 0.1
    rounding: Rounding = "ceil"
    num_noise_samples: int = 1000
    sigma: float = 0.05
    label_head: bool = True
    fgcl_weight: float = 1.0
    negative_margin: float = 0.7
    weak_margin: float = 0.3
    weak_weight: float = 0.1
    negatives: Negatives = "hardest"
    fgla_weight: float = 1.0
    reconstruction_weight: float = 1.0
    kl_weight: float = 1e-4
    prior_weight: float = 1.0
    cross_weight: float = 1.0
    detach_targets: bool = True
    defect: int | None = None

    @property
    def has_regions(self) -> bool:
        """Whether the region heads exist."""
        return self.fgcl_weight > 0

    @property
    def has_labels(self) -> bool:
        """Whether the label heads exist."""
        return self.label_head and self.fgla_weight > 0 and self.num_classes > 0

    def make_selection(self) -> Selection:
        """Gather what the region heads need, with the released behaviour of defects 1, 2, 4, 5 and 6."""
        correct = Selection(
            kind=self.selection,
            eval_kind=self.eval_selection,
            ratio=self.ratio,
            rounding=self.rounding,
            num_noise_samples=self.num_noise_samples,
            sigma=self.sigma,
        )
        match self.defect:
            case 1:
                return replace(correct, divisor="ratio")
            case 2:
                return replace(correct, rounding="released")
            case 4:
                return replace(correct, eval_kind="released")
            case 5:
                return replace(correct, estimator="diagonal")
            case 6:
                return replace(correct, memory="one_hots")
            case _:
                return correct


class Side(nn.Module):
    """One modality: the trunk and the two heads that share it."""

    def __init__(self, name: str, trunk: ImageTrunk | TextTrunk, settings: FganSettings) -> None:
        super().__init__()
        self.name, self.trunk = name, trunk
        self.detach_target = settings.detach_targets and settings.defect != 11
        self.region = (
            RegionHead(
                settings.width,
                num_heads=settings.num_heads,
                attention_dropout=settings.attention_dropout,
                selection=settings.make_selection(),
                has_padding=name != "image",
            )
            if settings.has_regions
            else None
        )
        self.label = (
            LabelHead(
                settings.width,
                latent=settings.latent,
                num_classes=settings.num_classes,
                with_vae=settings.reconstruction_weight > 0 or settings.kl_weight > 0,
            )
            if settings.has_labels
            else None
        )

    def forward(self, features_BLD: Tensor, lengths_B: Tensor, *, noise: RowNoise | None) -> SideOutput:
        """Encode backbone features [B, L, channels] of true lengths [B]."""
        assert noise is None or len(noise) == len(features_BLD), "one noise key for each row"
        tokens_BLD = self.trunk(features_BLD.to(next(self.parameters()).dtype), lengths_B)
        region_BD = weights_BL = logits_BC = reconstruction_B = kl_B = None
        if self.region is not None:
            region_BD, weights_BL = self.region(tokens_BLD, lengths_B, noise=noise, side=self.name)
        if self.label is not None:
            label = self.label(
                tokens_BLD, lengths_B, noise=noise, side=self.name, detach_target=self.detach_target
            )
            logits_BC, reconstruction_B, kl_B = label.logits_BC, label.reconstruction_B, label.kl_B
        return SideOutput(region_BD, logits_BC, weights_BL, reconstruction_B, kl_B)


class Fgan(AlignmentModel):
    """Both sides and the loss FGCL + FGLA."""

    def __init__(self, settings: FganSettings) -> None:
        super().__init__()
        _check(settings)
        self.settings = settings
        self.image = Side(
            "image", ImageTrunk(settings.image_channels, settings.width, kind=settings.image_trunk), settings
        )
        self.text = Side(
            "text", TextTrunk(settings.text_channels, settings.width, kind=settings.text_trunk), settings
        )

    @property
    def blocks(self) -> tuple[VectorBlock, ...]:
        """[region ; label], or the one that exists."""
        width = self.settings.width if self.settings.has_regions else 0
        region = (VectorBlock(REGION, 0, width),) if self.settings.has_regions else ()
        label = VectorBlock(LABEL, width, width + self.settings.num_classes)
        return (*region, label) if self.settings.has_labels else region

    def encode_image(self, regions_BRD: Tensor, *, noise: RowNoise | None = None) -> SideOutput:
        """Encode region features [B, R, image_channels]; every region is a true token."""
        lengths_B = torch.full(regions_BRD.shape[:1], regions_BRD.shape[1], device=regions_BRD.device)
        output: SideOutput = self.image(regions_BRD, lengths_B, noise=noise)
        return output

    def encode_text(
        self, tokens_BLD: Tensor, lengths_B: Tensor, *, noise: RowNoise | None = None
    ) -> SideOutput:
        """Encode token states [B, L, text_channels]; lengths [B] int64, at least 1, the rest is padding."""
        if self.settings.defect == 3:
            lengths_B = torch.full_like(lengths_B, tokens_BLD.shape[1])
        output: SideOutput = self.text(tokens_BLD, lengths_B.to(tokens_BLD.device), noise=noise)
        return output

    def loss(
        self, image: SideOutput, text: SideOutput, relations: Relations, prior_logits_BC: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute fgcl_weight FGCL + fgla_weight FGLA of the global batch.

        Parts, detached, of the terms computed: "fgcl", "fgcl_negative", "fgcl_weak", "num_negative", "num_weak",
        "collapse_value" (FGCL of this batch if all embeddings were one point), "fgla", "fgla_reconstruction", "fgla_kl",
        "fgla_prior", "fgla_cross". The relations must be on the outputs' device.
        """
        settings = self.settings
        totals: list[Tensor] = []
        parts: dict[str, Tensor] = {}
        if image.region_BD is not None and text.region_BD is not None:
            contrast = fgcl(
                image.region_BD,
                text.region_BD,
                relations,
                negative_margin=settings.negative_margin,
                weak_margin=settings.weak_margin,
                weak_weight=settings.weak_weight,
                negatives=settings.negatives,
                without_negative="sentinel" if settings.defect == 9 else "left_out",
                weak_rows="by_distance" if settings.defect == 10 else "by_relation",
            )
            totals.append(settings.fgcl_weight * contrast.total)
            parts |= {
                "fgcl": contrast.total.detach(),
                "fgcl_negative": contrast.negative,
                "fgcl_weak": contrast.weak,
                "num_negative": contrast.num_negative,
                "num_weak": contrast.num_weak,
                "collapse_value": contrast.collapse_value,
            }
        if image.logits_BC is not None and text.logits_BC is not None:
            aligned = self._fgla(image, text, image.logits_BC, text.logits_BC, prior_logits_BC)
            totals.append(settings.fgla_weight * aligned.pop("total"))
            parts |= {"fgla": (totals[-1] / settings.fgla_weight).detach()}
            parts |= {f"fgla_{name}": value for name, value in aligned.items()}
        return {"total": torch.stack(totals).sum()} | parts

    def _fgla(
        self, image: SideOutput, text: SideOutput, image_BC: Tensor, text_BC: Tensor, prior_BC: Tensor | None
    ) -> dict[str, Tensor]:
        settings = self.settings
        vae = {
            name: (ours, theirs)
            for name in ("reconstruction", "kl")
            if (ours := getattr(image, f"{name}_B")) is not None
            and (theirs := getattr(text, f"{name}_B")) is not None
        }
        weights = FglaWeights(
            settings.reconstruction_weight, settings.kl_weight, settings.prior_weight, settings.cross_weight
        )
        detach = settings.detach_targets and settings.defect != 11
        return fgla((image_BC, text_BC), prior_BC, weights=weights, detach_targets=detach, **vae)

    def architecture(self) -> dict[str, object]:
        """The settings as plain values, with "method"."""
        return {"method": "fgan", **asdict(self.settings)}


def build_fgan(settings: FganSettings, *, seed: int = 0) -> Fgan:
    """Build FGAN with initial weights that depend on `seed` alone; the global random state is left as it was."""
    return build_seeded(lambda: Fgan(settings), seed=seed)


def _check(settings: FganSettings) -> None:
    if settings.defect is not None and settings.defect not in RELEASED:
        raise ConfigError("model.defect names a released defect", got=settings.defect, expected="1 to 12")
    if not settings.has_regions and not settings.has_labels:
        raise ConfigError(
            "nothing to train: neither region embeddings nor label distributions",
            got=f"fgcl_weight={settings.fgcl_weight}, fgla_weight={settings.fgla_weight}, "
            f"label_head={settings.label_head}, teacher classes={settings.num_classes}",
            expected="fgcl_weight > 0, or label_head with fgla_weight > 0 and a teacher",
        )
