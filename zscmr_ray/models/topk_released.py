"""The perturbed top-k as the published code has it: one-hots of size B x n x k x L, and the diagonal of the Jacobian.

Kept for two uses only: the baseline of benchmarks/topk_operator.py, and defects 5 and 6 of SCIENCE 2 in
`fgan_as_released(defect=...)`. Written from the description, in our own words. Nothing else should import it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zscmr_ray.models.noise import RowNoise


def one_hot_topk(scores_BL: Tensor, k: int, *, noise_BSL: Tensor, sigma: float) -> Tensor:
    """Select k tokens softly the published way; returns the mean one-hots [B, k, L] of the position-sorted picks.

    Summed over the middle axis they are the weights W of `topk.perturbed_topk`. Has no notion of padding.
    """
    return _OneHotTopK.apply(scores_BL, k, noise_BSL, sigma)  # type: ignore[no-untyped-call]


class _OneHotTopK(torch.autograd.Function):
    """Forward: topk, sort, one-hot, mean. Backward: each entry keeps its own noise only."""

    @staticmethod
    def forward(ctx: Any, scores_BL: Tensor, k: int, noise_BSL: Tensor, sigma: float) -> Tensor:
        perturbed_BSL = scores_BL[:, None] + noise_BSL * sigma
        indices_BSK = torch.topk(perturbed_BSL, k=k, dim=-1, sorted=False).indices
        indices_BSK = torch.sort(indices_BSK, dim=-1).values
        one_hots_BSKL = functional.one_hot(indices_BSK, num_classes=scores_BL.shape[1]).float()
        ctx.save_for_backward(one_hots_BSKL, noise_BSL)
        ctx.sigma = sigma
        return one_hots_BSKL.mean(dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        one_hots_BSKL, noise_BSL = ctx.saved_tensors
        own_BKL = torch.einsum("bskl,bsl->bkl", one_hots_BSKL, noise_BSL) / (noise_BSL.shape[1] * ctx.sigma)
        return torch.einsum("bkl,bkl->bl", grads[0], own_BKL), None, None, None


def stored_one_hots_topk(
    scores_BL: Tensor,
    *,
    lengths_B: Tensor,
    k_B: Tensor,
    noise: RowNoise,
    site: str,
    num_samples: int,
    sigma: float,
) -> Tensor:
    """Select softly with the right gradient and the released memory: defect 6 alone, B x n x k x L one-hots kept.

    Arguments and result as `topk.perturbed_topk`; row by row, for each row has its own length and k.
    """
    generators = noise.generators(site, device=scores_BL.device)
    weights_BL = torch.zeros_like(scores_BL, dtype=torch.float32)
    for b, generator in enumerate(generators):
        length, k = int(lengths_B[b]), int(k_B[b])
        noise_SL = torch.empty(num_samples, length, device=scores_BL.device).normal_(generator=generator)
        row_L = _StoredOneHots.apply(  # type: ignore[no-untyped-call]
            scores_BL[b, :length].float(), k, noise_SL, sigma
        )
        weights_BL[b, :length] = row_L
    return weights_BL


class _StoredOneHots(torch.autograd.Function):
    """One row: the centred estimator of topk.py, computed from stored one-hots."""

    @staticmethod
    def forward(ctx: Any, scores_L: Tensor, k: int, noise_SL: Tensor, sigma: float) -> Tensor:
        indices_SK = torch.topk(scores_L + noise_SL * sigma, k=k, dim=-1, sorted=False).indices
        one_hots_SKL = functional.one_hot(indices_SK, num_classes=len(scores_L)).float()
        ctx.save_for_backward(one_hots_SKL, noise_SL)
        ctx.sigma = sigma
        return one_hots_SKL.sum(dim=1).mean(dim=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        one_hots_SKL, noise_SL = ctx.saved_tensors
        products_S = torch.einsum("skl,l->s", one_hots_SKL, grads[0])
        centred_S = (products_S - products_S.mean()) / ((len(products_S) - 1) * ctx.sigma)
        return centred_S @ noise_SL, None, None, None
