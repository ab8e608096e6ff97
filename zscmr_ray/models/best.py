"""`best`, this project's own method for unseen classes: alignments of both sides joined into one vector a side.

With x the mean region, l = H x + b the classifier's logits over its C named classes and l_r those of region r, y the unit
mean token, k the text by its single tokens (token_kernel.py), u_c, v_c and w_c the unit sentence vectors of class c's name
with its synonyms, alone, and in a prompt, ~ a value centred on the training rows:

    named       image named_images.py of l and l_r           text named_texts.py: by the names, and by what images taught
    semantic    image sum_c softmax(l / 3)_c u_c ~           text y ~                  (ConSE, centred)
    seen        image seen_classes.py of x ~                 text the same of [y ~, k ~]
    contrasted  image f(x ~)                                 text g([y ~, k ~])        contrasted.py

In [y ~, k ~] each has a mean square of 1 over the training rows. `named` and `seen` then pass shared_whitening.py.
An unseen class is told by what it looks and reads like: by the classifier's classes, whose names the text model knows, and
by the trained ones. Each part is a unit vector p_b, the vector [sqrt(w_b) p_b] has norm 1, and an inner product is
sum_b w_b cos_b. Fitted at once, all but the towers in closed form; the weights w_b and the towers' epochs are chosen on
pseudo-unseen classes (engine/fitted.py). The logits are recomputed from the regions, so that cached features and pixels
give the same vector.

Legend: B batch, R regions, L tokens, F image channels, D text channels, K landmarks, C teacher classes, N pairs,
E = D + K.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from zscmr_ray.errors import ConfigError
from zscmr_ray.losses.relations import Relations
from zscmr_ray.models.alignment_statistics import PairRows, check_rows, side_moments
from zscmr_ray.models.base import REGION, AlignmentModel, SideOutput, VectorBlock
from zscmr_ray.models.best_settings import DEFAULT_WEIGHTS, EPOCHS, PARTS, BestSettings
from zscmr_ray.models.contrasted import Contrasted, ContrastedSettings
from zscmr_ray.models.named_images import NamedImages
from zscmr_ray.models.named_texts import NamedTexts
from zscmr_ray.models.noise import RowNoise
from zscmr_ray.models.seen_classes import SeenClasses
from zscmr_ray.models.shared_whitening import PartWhitenings
from zscmr_ray.models.token_kernel import TokenKernel
from zscmr_ray.models.trunks import masked_mean
from zscmr_ray.models.versions import version_facts

if TYPE_CHECKING:
    from zscmr_ray.models.teacher_head import TeacherHead


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
        landmarks = settings.num_landmarks
        shapes = {
            "head_weight": (classes, image),
            "head_bias": (classes,),
            "names": (classes, text),
            "image_mean": (image,),
            "text_mean": (text,),
            "kernel_mean": (landmarks,),
            "text_spread": (2,),
            "semantic_mean": (text,),
        }
        self.fitted = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape), requires_grad=False) for name, shape in shapes.items()}
        )
        self.named_images = NamedImages(
            classes, teacher_temperature=settings.teacher_temperature, power=settings.named_power
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
        self.token_kernel = TokenKernel(text, num_landmarks=landmarks, width=settings.token_kernel_width)
        self.image_seen, self.text_seen = (
            SeenClasses(
                channels, max_classes=settings.max_seen_classes, temperature=settings.seen_temperature
            )
            for channels in (image, text + landmarks)
        )
        towers = ContrastedSettings(
            image,
            text + landmarks,
            width=settings.contrasted_width,
            num_pairs=settings.contrasted_pairs,
        )
        self.contrasted = Contrasted(towers)
        self.whitenings = PartWhitenings(dict(zip(PARTS, settings.widths, strict=True)), settings.whitenings)
        self.part_weights = nn.Parameter(torch.tensor(DEFAULT_WEIGHTS), requires_grad=False)

    @property
    def blocks(self) -> tuple[VectorBlock, ...]:
        """One block: the parts' weights are fixed, and in the vector."""
        return (VectorBlock(REGION, 0, sum(self.settings.widths)),)

    def set_teacher(self, head: TeacherHead) -> None:
        """Take the classifier, which `region_shares` and `fit` need."""
        self._set(head_weight=head.weight_CF, head_bias=head.bias_C, names=head.name_CD)

    def fit(
        self,
        rows: PairRows,
        head: TeacherHead,
        *,
        kernel_NK: Tensor,
        region_shares_NC: Tensor,
        epochs: int = EPOCHS[0],
    ) -> None:
        """Fit every part on mean regions and mean tokens of training pairs, the towers in `epochs` passes.

        `kernel_NK` is what `token_kernel`, fitted before, says of their texts, `region_shares_NC` what `region_shares`
        says of their images. Raises DataError for rows that do not do.
        """
        check_rows(rows)
        settings, class_N = self.settings, rows.class_N
        self.set_teacher(head)
        image_NF = torch.from_numpy(rows.image_NF).float()
        text_ND = functional.normalize(torch.from_numpy(rows.text_ND).float(), dim=1)
        logits_NC = self._logits(image_NF)
        text, teacher = (side_moments(side.numpy(), class_N) for side in (text_ND, logits_NC))
        self.named_texts.fit(
            text,
            teacher,
            (head.name_CD, head.first_name_CD, head.prompt_CD),
            name_regularisation=settings.name_regularisation,
            taught_regularisation=settings.taught_regularisation,
            class_share=settings.class_share,
        )
        self._set(
            image_mean=_mean(image_NF),
            text_mean=_mean(text_ND),
            kernel_mean=_mean(kernel_NK),
            semantic_mean=_mean(self._semantic(logits_NC)),
        )
        self.named_images.fit(logits_NC, region_shares_NC)
        centred_NF = image_NF - self.fitted["image_mean"]
        spreads = [_spread(text_ND - text_ND.mean(0)), _spread(kernel_NK - kernel_NK.mean(0))]
        self._set(text_spread=torch.stack(spreads))
        both_NE = self._both(text_ND - self.fitted["text_mean"], kernel_NK)
        self.image_seen.fit(centred_NF, class_N, regularisation=settings.seen_image_regularisation)
        self.text_seen.fit(both_NE, class_N, regularisation=settings.seen_text_regularisation)
        self.contrasted.fit(rows, centred_NF, both_NE, epochs=epochs)
        with torch.no_grad():
            images = self.plain_image_parts(image_NF, region_shares_NC)
            texts = self.plain_text_parts(torch.from_numpy(rows.text_ND).float(), kernel_NK)
        self.whitenings.fit(images, texts)

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

    def region_shares(self, regions_BRF: Tensor) -> Tensor:
        """Return the classifier's shares of each region, averaged: [B, C]."""
        logits_BRC = self._logits(regions_BRF.float())
        return torch.softmax(logits_BRC / self.settings.teacher_temperature, dim=2).mean(dim=1)

    def image_parts(self, mean_BF: Tensor, region_shares_BC: Tensor) -> list[Tensor]:
        """Return the unit parts of images' mean regions [B, F] and region shares [B, C], in the order of PARTS."""
        return self.whitenings.image(self.plain_image_parts(mean_BF, region_shares_BC))

    def text_parts(self, mean_BD: Tensor, kernel_BK: Tensor) -> list[Tensor]:
        """Return the unit parts of captions' mean tokens [B, D] and token kernels [B, K], in the order of PARTS."""
        return self.whitenings.text(self.plain_text_parts(mean_BD, kernel_BK))

    def encode_image(self, regions_BRD: Tensor, *, noise: RowNoise | None = None) -> SideOutput:
        """Encode region features [B, R, image_channels] by their mean, and by what the classifier says of each."""
        del noise
        mean_BF, shares_BC = regions_BRD.float().mean(dim=1), self.region_shares(regions_BRD)
        return SideOutput(region_BD=self._joined(self.image_parts(mean_BF, shares_BC)))

    def encode_text(
        self, tokens_BLD: Tensor, lengths_B: Tensor, *, noise: RowNoise | None = None
    ) -> SideOutput:
        """Encode token states [B, L, text_channels] by the mean of the true ones, and by each for itself."""
        del noise
        lengths_B = lengths_B.to(tokens_BLD.device)
        parts = self.text_parts(masked_mean(tokens_BLD, lengths_B), self.token_kernel(tokens_BLD, lengths_B))
        return SideOutput(region_BD=self._joined(parts))

    def loss(
        self, image: SideOutput, text: SideOutput, relations: Relations, prior_logits_BC: Tensor | None = None
    ) -> dict[str, Tensor]:
        """There is none: the method is fitted."""
        raise NotImplementedError("method best is fitted (engine/fitted.py), not trained by gradient")

    def architecture(self) -> dict[str, object]:
        """The settings as plain values, with "method" and its version."""
        return {"method": "best", **version_facts("best"), **asdict(self.settings)}

    def _logits(self, features: Tensor) -> Tensor:
        return functional.linear(features, self.fitted["head_weight"], self.fitted["head_bias"])

    def plain_image_parts(self, mean_BF: Tensor, region_shares_BC: Tensor) -> list[Tensor]:
        """Return the unit parts before any is whitened."""
        logits_BC, centred_BF = self._logits(mean_BF), mean_BF - self.fitted["image_mean"]
        return _units(
            [
                self.named_images(logits_BC, region_shares_BC),
                self._semantic(logits_BC) - self.fitted["semantic_mean"],
                self.image_seen(centred_BF),
                self.contrasted.image(centred_BF),
            ]
        )

    def plain_text_parts(self, mean_BD: Tensor, kernel_BK: Tensor) -> list[Tensor]:
        """Return the unit parts before any is whitened."""
        centred_BD = functional.normalize(mean_BD, dim=1) - self.fitted["text_mean"]
        both_BE = self._both(centred_BD, kernel_BK)
        return _units(
            [self.named_texts(centred_BD), centred_BD, self.text_seen(both_BE), self.contrasted.text(both_BE)]
        )

    def _semantic(self, logits_BC: Tensor) -> Tensor:
        shares_BC = torch.softmax(logits_BC / self.settings.teacher_temperature, dim=1)
        return functional.normalize(shares_BC @ self.fitted["names"], dim=1)

    def _both(self, centred_BD: Tensor, kernel_BK: Tensor) -> Tensor:
        """Centred mean tokens and token kernels beside each other [B, E], each with its spread made 1."""
        text, kernel = self.fitted["text_spread"]
        return torch.cat([centred_BD / text, (kernel_BK - self.fitted["kernel_mean"]) / kernel], dim=1)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        roots_P = self.part_weights.sqrt()
        return torch.cat([root * part for root, part in zip(roots_P, parts, strict=True)], dim=1)

    def _set(self, **values: Tensor | npt.NDArray[Any]) -> None:
        for name, value in values.items():
            self.fitted[name].data = torch.as_tensor(value).detach().float().clone()


def _units(parts: Sequence[Tensor]) -> list[Tensor]:
    return [functional.normalize(part, dim=1) for part in parts]


def _mean(rows_ND: Tensor) -> Tensor:
    return rows_ND.double().mean(0)


def _spread(centred_ND: Tensor) -> Tensor:
    """The root mean square length of rows, with a floor for rows that are all alike."""
    return centred_ND.square().sum(1).mean().sqrt().clamp_min(1e-12)
