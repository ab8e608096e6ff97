"""Which of the trained classes an item looks or reads like: shares by linear discriminants, of one side of `best` (best.py).

    share  sqrt(softmax((x~ A + o) / t)) ~        A, o: alignment_statistics.discriminants;  ~ centred on the training rows

An unseen class is told by the trained ones it is taken for, which are the same ones for its pictures and its texts.

What it is: fitted in closed form. What it is not: a classifier of unseen classes, or trained by gradient.

Legend: B batch, D channels, S columns for trained classes, N training rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zscmr_ray.models.alignment_statistics import discriminants, side_moments


class SeenClasses(nn.Module):
    """The fitted tensors and `forward`; make it, `fit` it or load it. Columns without a class have no share."""

    def __init__(self, channels: int, *, max_classes: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        shapes = {"weight": (channels, max_classes), "bias": (max_classes,), "mean": (max_classes,)}
        self.fitted = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape), requires_grad=False) for name, shape in shapes.items()}
        )

    def fit(self, centred_ND: Tensor, class_N: npt.NDArray[np.int64], *, regularisation: float) -> None:
        """Fit on centred training rows; the ridge is in units of the variance within classes."""
        fitted = self.fitted
        weight_DC, offset_C = discriminants(
            side_moments(centred_ND.numpy(), class_N),
            class_N,
            regularisation=regularisation,
            max_classes=len(fitted["bias"]),
        )
        num = len(offset_C)
        weight_DS, bias_S = torch.zeros_like(fitted["weight"]), torch.full_like(fitted["bias"], -torch.inf)
        weight_DS[:, :num] = torch.from_numpy(weight_DC).float()
        bias_S[:num] = torch.from_numpy(offset_C).float()
        fitted["weight"].data, fitted["bias"].data = weight_DS, bias_S
        fitted["mean"].data = self._shares(centred_ND).double().mean(0).float()

    def forward(self, centred_BD: Tensor) -> Tensor:
        """Return the centred shares [B, S] of centred rows; not of unit length."""
        return self._shares(centred_BD) - self.fitted["mean"]

    def _shares(self, centred_BD: Tensor) -> Tensor:
        bias_S = self.fitted["bias"]
        logits_BS = centred_BD @ self.fitted["weight"] + bias_S
        # No class at all (a corpus without labels): every share is 0, and so is the part.
        shares_BS = torch.softmax(logits_BS / self.temperature, dim=1).sqrt()
        return torch.where(torch.isfinite(bias_S), shares_BS, torch.zeros_like(shares_BS))
