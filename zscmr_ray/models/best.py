"""`best`, this project's own method for unseen classes: four alignments joined into one vector a side.

With x the mean region, l = H x + b the classifier's logits over its C named classes, y the unit mean token, u_c, v_c and w_c
the unit sentence vectors of class c's name with its synonyms, alone, and in a prompt, ~ a value centred on the training rows:

    named       image sqrt(softmax(l / 3)) ~             text named_texts.py: by the names, and by what images taught
    semantic    image sum_c softmax(l / 3)_c u_c ~       text y ~                                (ConSE, centred)
    seen        image sqrt(softmax(4 d(x))) ~            text sqrt(softmax(4 d(y))) ~            d: linear discriminants
                                                                                                 of the trained classes
    contrasted  image f(x~)                              text g(y~)                              contrasted.py: two towers

An unseen class is told by what it looks and reads like: by the classifier's classes, whose names the text model knows, and
by the trained ones. Each part is a unit vector p_b, the vector [sqrt(w_b) p_b] has norm 1, and an inner product is
sum_b w_b cos_b. Fitted in seconds, all but the towers in closed form; the weights w_b are chosen on pseudo-unseen classes
(engine/fitted.py). The logits are recomputed from the regions, so that cached features and pixels give the same vector.

Legend: B batch, R regions, L tokens, F image channels, D text channels, C teacher classes, S trained classes, N pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from zscmr_ray.errors import ConfigError
from zscmr_ray.losses.relations import Relations
from zscmr_ray.models.alignment_statistics import (
    PairRows,
    check_rows,
    discriminants,
    side_moments,
)
from zscmr_ray.models.base import REGION, AlignmentModel, SideOutput, VectorBlock
from zscmr_ray.models.contrasted import Contrasted, ContrastedSettings
from zscmr_ray.models.named_texts import NamedTexts
from zscmr_ray.models.noise import RowNoise
from zscmr_ray.models.trunks import masked_mean

if TYPE_CHECKING:
    from zscmr_ray.models.teacher_head import TeacherHead

PARTS = ("named", "semantic", "seen", "contrasted")
DEFAULT_WEIGHTS = (1.0, 0.15, 0.2, 0.25)
"""Where the choice of the weights begins; chosen on pseudo-unseen classes (docs/science.md)."""


@dataclass(frozen=True, slots=True)
class BestSettings:
    """Every hyper-parameter; the defaults were chosen on pseudo-unseen classes (docs/science.md)."""

    image_channels: int
    text_channels: int
    num_classes: int = 1000
    teacher_temperature: float = 3.0
    name_temperature: float = 0.035
    name_regularisation: float = 1.0
    synonyms_share: float = 0.35
    first_name_share: float = 0.5
    prompt_share: float = 0.5
    taught_share: float = 0.2
    taught_regularisation: float = 1.0
    seen_temperature: float = 0.25
    seen_regularisation: float = 1.0
    max_seen_classes: int = 128
    class_share: float = 0.5
    contrasted_width: int = 256

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each part, in the order of PARTS."""
        return (self.num_classes, self.text_channels, self.max_seen_classes, self.contrasted_width)


class Best(AlignmentModel):
    """The fitted parts of both sides; nothing here has a gradient."""

    is_fitted = True

    def __init__(self, settings: BestSettings) -> None:
        super().__init__()
        if settings.num_classes < 1:
            raise ConfigError(
                "method best needs a teacher whose classes have names",
                got="pairs without teacher logits",
                expected="preprocess.teacher=image_backbone",
                remedy="preprocess with a classifier, or use recipe supcon",
            )
        self.settings = settings
        image, text, classes = settings.image_channels, settings.text_channels, settings.num_classes
        seen = settings.max_seen_classes
        shapes = {
            "head_weight": (classes, image),
            "head_bias": (classes,),
            "names": (classes, text),
            "image_mean": (image,),
            "text_mean": (text,),
            "image_seen": (image, seen),
            "image_seen_bias": (seen,),
            "text_seen": (text, seen),
            "text_seen_bias": (seen,),
            "image_named_mean": (classes,),
            "semantic_mean": (text,),
            "image_seen_mean": (seen,),
            "text_seen_mean": (seen,),
        }
        self.fitted = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape), requires_grad=False) for name, shape in shapes.items()}
        )
        self.named_texts = NamedTexts(
            text,
            classes,
            shares=(
                settings.synonyms_share,
                settings.first_name_share,
                settings.prompt_share,
                settings.taught_share,
            ),
            name_temperature=settings.name_temperature,
            teacher_temperature=settings.teacher_temperature,
        )
        self.contrasted = Contrasted(ContrastedSettings(image, text, width=settings.contrasted_width))
        self.part_weights = nn.Parameter(torch.tensor(DEFAULT_WEIGHTS), requires_grad=False)

    @property
    def blocks(self) -> tuple[VectorBlock, ...]:
        """One block: the parts' weights are fixed, and in the vector."""
        return (VectorBlock(REGION, 0, sum(self.settings.widths)),)

    def fit(self, rows: PairRows, head: TeacherHead) -> None:
        """Fit every part on mean regions and mean tokens of training pairs. Raises DataError for rows that do not do."""
        check_rows(rows)
        settings = self.settings
        image_NF = torch.from_numpy(rows.image_NF).float()
        text_ND = functional.normalize(torch.from_numpy(rows.text_ND).float(), dim=1)
        self._set(
            head_weight=head.weight_CF,
            head_bias=head.bias_C,
            names=head.name_CD,
        )
        logits_NC = self._logits(image_NF)
        image, text, teacher = (
            side_moments(side.numpy(), rows.class_N) for side in (image_NF, text_ND, logits_NC)
        )
        self._set(image_mean=image.mean_D, text_mean=text.mean_D)
        self.named_texts.fit(
            text,
            teacher,
            (head.name_CD, head.first_name_CD, head.prompt_CD),
            name_regularisation=settings.name_regularisation,
            taught_regularisation=settings.taught_regularisation,
            class_share=settings.class_share,
        )
        for name, side in (("image", image), ("text", text)):
            weight_DS, offset_S = discriminants(
                side,
                rows.class_N,
                regularisation=settings.seen_regularisation,
                max_classes=settings.max_seen_classes,
            )
            # Columns without a class never get a share.
            bias_S = torch.full((settings.max_seen_classes,), -torch.inf)
            bias_S[: len(offset_S)] = torch.from_numpy(offset_S).float()
            self._set(**{f"{name}_seen": torch.from_numpy(weight_DS), f"{name}_seen_bias": bias_S})
        image_NF, text_ND = image_NF - self.fitted["image_mean"], text_ND - self.fitted["text_mean"]
        self.contrasted.fit(rows, image_NF, text_ND)
        self._centre(logits_NC, image_NF, text_ND)

    def set_part_weights(self, weights: Mapping[str, float]) -> None:
        """Weigh the parts, by name; the sum is made 1. Raises ConfigError for other names, or no positive weight."""
        values = torch.tensor([weights.get(name, -1.0) for name in PARTS], dtype=torch.float64)
        if set(weights) != set(PARTS) or not (values >= 0).all() or not values.sum() > 0:
            raise ConfigError(
                "part weights that cannot be used",
                got=dict(weights),
                expected=f"{', '.join(PARTS)}, none negative",
            )
        self.part_weights.data = (values / values.sum()).float()

    def image_parts(self, mean_BF: Tensor) -> list[Tensor]:
        """Return the unit parts of images' mean regions [B, F], in the order of PARTS."""
        fitted, logits_BC = self.fitted, self._logits(mean_BF)
        centred_BF = mean_BF - fitted["image_mean"]
        return _units(
            [
                self._shares(logits_BC) - fitted["image_named_mean"],
                self._semantic(logits_BC) - fitted["semantic_mean"],
                self._seen(centred_BF, "image") - fitted["image_seen_mean"],
                self.contrasted.image(centred_BF),
            ]
        )

    def text_parts(self, mean_BD: Tensor) -> list[Tensor]:
        """Return the unit parts of captions' mean tokens [B, D], in the order of PARTS."""
        fitted = self.fitted
        centred_BD = functional.normalize(mean_BD, dim=1) - fitted["text_mean"]
        seen_BS = self._seen(centred_BD, "text") - fitted["text_seen_mean"]
        return _units([self.named_texts(centred_BD), centred_BD, seen_BS, self.contrasted.text(centred_BD)])

    def encode_image(self, regions_BRD: Tensor, *, noise: RowNoise | None = None) -> SideOutput:
        """Encode region features [B, R, image_channels] by their mean."""
        del noise
        return SideOutput(region_BD=self._joined(self.image_parts(regions_BRD.float().mean(dim=1))))

    def encode_text(
        self, tokens_BLD: Tensor, lengths_B: Tensor, *, noise: RowNoise | None = None
    ) -> SideOutput:
        """Encode token states [B, L, text_channels] by the mean of the true ones."""
        del noise
        mean_BD = masked_mean(tokens_BLD.float(), lengths_B.to(tokens_BLD.device))
        return SideOutput(region_BD=self._joined(self.text_parts(mean_BD)))

    def loss(
        self, image: SideOutput, text: SideOutput, relations: Relations, prior_logits_BC: Tensor | None = None
    ) -> dict[str, Tensor]:
        """There is none: the method is fitted."""
        raise NotImplementedError("method best is fitted (engine/fitted.py), not trained by gradient")

    def architecture(self) -> dict[str, object]:
        """The settings as plain values, with "method"."""
        return {"method": "best", **asdict(self.settings)}

    def _centre(self, logits_NC: Tensor, image_NF: Tensor, text_ND: Tensor) -> None:
        """Set the means that the parts are centred by: of the training rows, never of what is searched."""
        self._set(
            image_named_mean=_mean(self._shares(logits_NC)),
            semantic_mean=_mean(self._semantic(logits_NC)),
            image_seen_mean=_mean(self._seen(image_NF, "image")),
            text_seen_mean=_mean(self._seen(text_ND, "text")),
        )

    def _logits(self, mean_BF: Tensor) -> Tensor:
        return functional.linear(mean_BF, self.fitted["head_weight"], self.fitted["head_bias"])

    def _shares(self, logits_BC: Tensor) -> Tensor:
        return torch.softmax(logits_BC / self.settings.teacher_temperature, dim=1).sqrt()

    def _semantic(self, logits_BC: Tensor) -> Tensor:
        shares_BC = torch.softmax(logits_BC / self.settings.teacher_temperature, dim=1)
        return functional.normalize(shares_BC @ self.fitted["names"], dim=1)

    def _seen(self, centred_BD: Tensor, side: str) -> Tensor:
        bias_S = self.fitted[f"{side}_seen_bias"]
        logits_BS = centred_BD @ self.fitted[f"{side}_seen"] + bias_S
        # No class at all (a corpus without labels): every share is 0, and so is the part.
        shares_BS = torch.softmax(logits_BS / self.settings.seen_temperature, dim=1).sqrt()
        return torch.where(torch.isfinite(bias_S), shares_BS, torch.zeros_like(shares_BS))

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        roots_P = self.part_weights.sqrt()
        return torch.cat([root * part for root, part in zip(roots_P, parts, strict=True)], dim=1)

    def _set(self, **values: Tensor | npt.NDArray[Any]) -> None:
        for name, value in values.items():
            tensor, place = torch.as_tensor(value).detach().float(), self.fitted[name]
            whole = torch.zeros_like(place.data)
            # Fewer directions or classes than columns: the rest stays zero.
            whole[tuple(slice(size) for size in tensor.shape)] = tensor
            place.data = whole


def _units(parts: Sequence[Tensor]) -> list[Tensor]:
    return [functional.normalize(part, dim=1) for part in parts]


def _mean(rows_ND: Tensor) -> Tensor:
    return rows_ND.double().mean(0)
