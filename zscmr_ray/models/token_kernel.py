"""A text by its single tokens: how near they are to landmark tokens. Beside the mean token, which blurs them.

With t~ a token centred on the training tokens and of unit length, z_1..z_K the landmarks, unit and centred alike:

    k(t)  = exp((z_k . t~ - 1) / h), k = 1..K
    text  = (mean over its tokens of k(t)) . (exp((Z Z' - 1) / h) + r I)^-1/2

The inner product of two texts is close to the mean of exp((cos - 1) / h) over all pairs of their tokens (Nystroem): it is
large for texts that share a rare word (a maker's name), where the means of their tokens are only a little nearer.
Landmarks are training tokens, drawn with chances by the distance to the nearest one drawn before (as k-means++ begins),
so that rare words get theirs.

What it is: fitted in a second on training tokens, part of `best` (best.py). What it is not: a tokenizer's counts (it reads
states of the text backbone and nothing else), or trained by gradient.

Legend: B batch, L text tokens, D text channels, T training tokens, K landmarks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from zscmr_ray.models.alignment_statistics import inverse_root
from zscmr_ray.models.trunks import masked_mean

_DRAWN_AT_ONCE = 16
_RIDGE = 1e-4


class TokenKernel(nn.Module):
    """The fitted tensors and `forward`; make it, `fit` it or load it. Columns without a landmark stay 0."""

    def __init__(self, channels: int, *, num_landmarks: int, width: float) -> None:
        super().__init__()
        self.width = width
        shapes = {
            "mean": (channels,),
            "landmarks": (num_landmarks, channels),
            "root": (num_landmarks, num_landmarks),
        }
        self.fitted = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape), requires_grad=False) for name, shape in shapes.items()}
        )

    def fit(self, tokens_TD: Tensor, *, seed: int) -> None:
        """Choose the landmarks among training tokens; the same for the same tokens and seed."""
        tokens_TD = tokens_TD.float()
        mean_D = tokens_TD.mean(0)
        unit_TD = functional.normalize(tokens_TD - mean_D, dim=1)
        landmarks = self.fitted["landmarks"]
        chosen_KD = unit_TD[_draw(unit_TD, len(landmarks), seed=seed)]
        near_KK = torch.exp((chosen_KD @ chosen_KD.T - 1) / self.width)
        root_KK = torch.from_numpy(inverse_root(near_KK.double().numpy(), _RIDGE)).float()
        num = len(chosen_KD)
        self.fitted["mean"].data = mean_D
        landmarks.data = functional.pad(chosen_KD, (0, 0, 0, len(landmarks) - num))
        self.fitted["root"].data = functional.pad(root_KK, (0, len(landmarks) - num) * 2)

    def forward(self, tokens_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return [B, K] of padded tokens; what lies in the padding does not matter."""
        unit_BLD = functional.normalize(tokens_BLD.float() - self.fitted["mean"], dim=2)
        near_BLK = torch.exp((unit_BLD @ self.fitted["landmarks"].T - 1) / self.width)
        return masked_mean(near_BLK, lengths_B) @ self.fitted["root"]


def _draw(unit_TD: Tensor, num: int, *, seed: int) -> list[int]:
    """Rows of at most `num` different tokens, a few at a time."""
    generator = np.random.default_rng(seed)
    chosen = [int(generator.integers(len(unit_TD)))]
    far_T = _distance(unit_TD, chosen)
    while len(chosen) < num and (left := int((far_T > 0).sum())):
        size = min(_DRAWN_AT_ONCE, num - len(chosen), left)
        new = generator.choice(len(unit_TD), size, replace=False, p=far_T / far_T.sum()).tolist()
        far_T = np.minimum(far_T, _distance(unit_TD, new))
        chosen += new
    return chosen


def _distance(unit_TD: Tensor, rows: list[int]) -> npt.NDArray[np.float64]:
    """Of each token to the nearest of some, as 1 - cosine; 0 where it is one of them but for rounding."""
    far_T = 1 - (unit_TD @ unit_TD[rows].T).amax(dim=1).double().numpy()
    return np.where(far_T < 1e-6, 0.0, far_T)
