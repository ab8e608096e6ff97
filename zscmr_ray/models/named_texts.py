"""What a text says of a classifier's classes: by their names, and by what the logits of paired images taught.

With y~ a text's unit mean token centred on the training rows, W the covariance of y within the trained classes,
P = (W + r tr(W)/D I)^-1/2, and n_c the unit sentence vector of class c's name in one of three wordings (with its
synonyms, alone, in the prompt "a photo of a ..."), centred on all C of them:

    by name    sqrt(softmax_c(cos(y~ P, n_c P) / t_n)) ~               three times
    taught     sqrt(softmax((y~ M + mean(l)) / t_l)) ~                  M: ridge regression from texts to logits l
    text       the unit sum of the four unit vectors, each with its share

P is why a name is found in a text that says much else: what varies within the classes (brand, colour, for whom) tells none
apart, and counts less. The text half of the part `named` of `best` (best.py); not a baseline, and not trained by gradient.

Legend: B batch, D text channels, C teacher classes, N training pairs, K wordings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zscmr_ray.models.alignment_statistics import SideMoments, cross_covariance, inverse_root, regression

NUM_WORDINGS = 3


class NamedTexts(nn.Module):
    """The fitted tensors and `forward`; make it, `fit` it or load it."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        shares: Sequence[float],
        name_temperature: float,
        teacher_temperature: float,
    ) -> None:
        super().__init__()
        assert len(shares) == NUM_WORDINGS + 1, "a share for every wording, then the taught one's"
        self.shares = tuple(shares)
        self.name_temperature, self.teacher_temperature = name_temperature, teacher_temperature
        shapes = {
            "whitening": (channels, channels),
            "names": (NUM_WORDINGS, num_classes, channels),
            "taught": (channels, num_classes),
            "taught_bias": (num_classes,),
            "means": (NUM_WORDINGS + 1, num_classes),
        }
        self.fitted = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape), requires_grad=False) for name, shape in shapes.items()}
        )

    def fit(
        self,
        text: SideMoments,
        teacher: SideMoments,
        names: Sequence[Tensor],
        *,
        name_regularisation: float,
        taught_regularisation: float,
        class_share: float,
    ) -> None:
        """Fit on the moments of training texts [N, D] and of their images' logits [N, C]; `names` are the wordings [C, D]."""
        whitening_DD = torch.from_numpy(inverse_root(text.within_DD, name_regularisation)).float()
        taught_DC = regression(
            text,
            cross_covariance(text, teacher, class_share=class_share),
            regularisation=taught_regularisation,
        )
        # A regression's outputs are shrunk: they are given the spread of what they stand for.
        spread = (text.rows_ND @ taught_DC).std(axis=0).mean()
        taught_DC = taught_DC * (teacher.rows_ND.std(axis=0).mean() / max(spread, 1e-12))
        found = {
            "whitening": whitening_DD,
            "names": torch.stack(
                [functional.normalize((one - one.mean(0)) @ whitening_DD, dim=1) for one in names]
            ),
            "taught": torch.from_numpy(np.asarray(taught_DC)).float(),
            "taught_bias": torch.from_numpy(np.asarray(teacher.mean_D)).float(),
        }
        for name, value in found.items():
            self.fitted[name].data = value
        rows_ND = torch.from_numpy(text.rows_ND).float()
        self.fitted["means"].data = torch.stack(
            [kind_NC.double().mean(0).float() for kind_NC in self._kinds(rows_ND)]
        )

    def forward(self, centred_BD: Tensor) -> Tensor:
        """Return what centred texts [B, D] say, [B, C]; not of unit length."""
        kinds = [
            functional.normalize(kind_BC - mean_C, dim=1)
            for kind_BC, mean_C in zip(self._kinds(centred_BD), self.fitted["means"], strict=True)
        ]
        return torch.stack([share * kind_BC for share, kind_BC in zip(self.shares, kinds, strict=True)]).sum(
            0
        )

    def _kinds(self, centred_BD: Tensor) -> list[Tensor]:
        unit_BD = functional.normalize(centred_BD @ self.fitted["whitening"], dim=1)
        logits_BC = centred_BD @ self.fitted["taught"] + self.fitted["taught_bias"]
        return [
            *(
                torch.softmax(unit_BD @ names_CD.T / self.name_temperature, dim=1).sqrt()
                for names_CD in self.fitted["names"]
            ),
            torch.softmax(logits_BC / self.teacher_temperature, dim=1).sqrt(),
        ]
