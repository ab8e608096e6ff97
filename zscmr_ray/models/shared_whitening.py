"""One linear map for both sides of a part of `best`: what varies together counts once, not as often as it has columns.

With p, q the unit vectors of images and texts, P, Q their covariances over the training pairs, each of trace 1:

    C      = (P + Q) / 2
    image  = unit((p - mean p) C'),  text = unit((q - mean q) C'),  C' = (C + r I / n)^-1/4       n: columns that vary

so that the inner product is that of the metric (C + r I / n)^-1/2. A hundred breeds of dogs, or trained classes that look
alike, are told by one direction and not by a hundred. A metric for both sides together keeps what a column stands for the
same in both, which a whitening of each by its own (as in CCA) does not, and needs no pair to be learned from.

What it is: closed form, no class is read. What it is not: a map from one side to the other (`taught` in named_texts.py is).

Legend: B batch, D columns, N training pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zscmr_ray.models.alignment_statistics import Matrix


class PartWhitenings(nn.Module):
    """A whitening for each part that has a ridge; the other parts pass as they are. `fit` it or load it."""

    def __init__(self, widths: Mapping[str, int], ridges: Mapping[str, float]) -> None:
        super().__init__()
        assert ridges.keys() <= widths.keys(), "a ridge of no part"
        self.by_part = nn.ModuleList(
            SharedWhitening(width, regularisation=ridges[name]) if name in ridges else nn.Identity()
            for name, width in widths.items()
        )

    def fit(self, images: Sequence[Tensor], texts: Sequence[Tensor]) -> None:
        """Fit on the unit parts of training pairs, in the order of `widths`."""
        for whitening, image_ND, text_ND in zip(self.by_part, images, texts, strict=True):
            if isinstance(whitening, SharedWhitening):
                whitening.fit(image_ND, text_ND)

    def image(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return the unit parts of images, whitened where they are."""
        return [
            whitening.image(part) if isinstance(whitening, SharedWhitening) else part
            for whitening, part in zip(self.by_part, parts, strict=True)
        ]

    def text(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return the unit parts of texts, whitened where they are."""
        return [
            whitening.text(part) if isinstance(whitening, SharedWhitening) else part
            for whitening, part in zip(self.by_part, parts, strict=True)
        ]


class SharedWhitening(nn.Module):
    """The fitted tensors, `image` and `text`; make it, `fit` it or load it. A column that never varied stays 0."""

    def __init__(self, width: int, *, regularisation: float) -> None:
        super().__init__()
        self.regularisation = regularisation
        shapes = {"root": (width, width), "image_mean": (width,), "text_mean": (width,)}
        self.fitted = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape), requires_grad=False) for name, shape in shapes.items()}
        )

    def fit(self, image_ND: Tensor, text_ND: Tensor) -> None:
        """Fit on the unit vectors of training pairs [N, D]."""
        means = [side_ND.double().mean(0) for side_ND in (image_ND, text_ND)]
        parts = [
            _covariance(side_ND.double() - mean_D)
            for side_ND, mean_D in zip((image_ND, text_ND), means, strict=True)
        ]
        root_DD = inverse_fourth_root((parts[0] + parts[1]) / 2, self.regularisation)
        found = {"root": torch.from_numpy(root_DD), "image_mean": means[0], "text_mean": means[1]}
        for name, value in found.items():
            self.fitted[name].data = value.float()

    def image(self, unit_BD: Tensor) -> Tensor:
        """Return unit vectors [B, D] of images' unit vectors."""
        return self._turned(unit_BD - self.fitted["image_mean"])

    def text(self, unit_BD: Tensor) -> Tensor:
        """Return unit vectors [B, D] of texts' unit vectors."""
        return self._turned(unit_BD - self.fitted["text_mean"])

    def _turned(self, centred_BD: Tensor) -> Tensor:
        return functional.normalize(centred_BD @ self.fitted["root"], dim=1)


def inverse_fourth_root(covariance_DD: Matrix, regularisation: float) -> Matrix:
    """Return (C + ridge)^-1/4 [D, D]; the ridge is in units of the mean variance of the columns that vary."""
    variance_D = np.diag(covariance_DD)
    total, num = float(variance_D.sum()), int((variance_D > 0).sum())
    if total <= 0:
        return np.eye(len(covariance_DD))
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    scales_D = (np.maximum(values_D, 0) + regularisation * total / num) ** -0.25
    result: Matrix = (vectors_DD * scales_D) @ vectors_DD.T
    return result


def _covariance(centred_ND: Tensor) -> Matrix:
    """The covariance, of trace 1 unless nothing varies."""
    covariance_DD: Matrix = (centred_ND.T @ centred_ND).numpy()
    return covariance_DD / max(float(np.trace(covariance_DD)), float(np.finfo(np.float64).tiny))
