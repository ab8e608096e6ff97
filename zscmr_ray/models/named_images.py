"""What an image says of a classifier's classes: by its mean region, and by each region for itself.

With l the logits of the mean region and l_r those of region r:

    of the mean      a = unit(sqrt(softmax(l / t)) ~)
    of the regions   b = unit(sqrt(mean_r softmax(l_r / t)) ~)          ~ centred on the training rows
    image            unit(sign(s) |s|^p),  s = unit(a + b)              p > 1: the classes that it shows count for more

The image half of the part `named` of `best` (best.py); the text half is named_texts.py. Closed form: training means alone.

Legend: B batch, C teacher classes, N training rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class NamedImages(nn.Module):
    """The training means and `forward`; make it, `fit` it or load it."""

    def __init__(self, num_classes: int, *, teacher_temperature: float, power: float) -> None:
        super().__init__()
        self.teacher_temperature, self.power = teacher_temperature, power
        self.fitted = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros(num_classes), requires_grad=False)
                for name in ("mean", "regions_mean")
            }
        )

    def fit(self, logits_NC: Tensor, region_shares_NC: Tensor) -> None:
        """Take the means over training images."""
        self.fitted["mean"].data = self._shares(logits_NC).double().mean(0).float()
        self.fitted["regions_mean"].data = region_shares_NC.sqrt().double().mean(0).float()

    def forward(self, logits_BC: Tensor, region_shares_BC: Tensor) -> Tensor:
        """Return unit vectors [B, C] of logits and of the shares of regions, averaged (`Best.region_shares`)."""
        mean_BC = functional.normalize(self._shares(logits_BC) - self.fitted["mean"], dim=1)
        regions_BC = functional.normalize(region_shares_BC.sqrt() - self.fitted["regions_mean"], dim=1)
        both_BC = functional.normalize(mean_BC + regions_BC, dim=1)
        return functional.normalize(both_BC.sign() * both_BC.abs().pow(self.power), dim=1)

    def _shares(self, logits_BC: Tensor) -> Tensor:
        return torch.softmax(logits_BC / self.teacher_temperature, dim=1).sqrt()
