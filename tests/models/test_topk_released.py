"""The released operator that we measure against: the same weights, the wrong gradient, and the memory of defect 6."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zscmr_ray.models.noise import RowNoise
from zscmr_ray.models.topk import perturbed_topk
from zscmr_ray.models.topk_released import one_hot_topk, stored_one_hots_topk

NUM_ROWS, NUM_TOKENS, K, N, SIGMA = 3, 20, 4, 64, 0.05


def scores() -> Tensor:
    return torch.rand(NUM_ROWS, NUM_TOKENS, generator=torch.Generator().manual_seed(0)).requires_grad_()


def shared(operator: Callable[..., Tensor], leaf: Tensor, **options: object) -> Tensor:
    return operator(
        leaf, lengths_B=torch.full((NUM_ROWS,), NUM_TOKENS), k_B=torch.full((NUM_ROWS,), K),
        noise=RowNoise(0, 0, torch.arange(NUM_ROWS)), site="s", num_samples=N, sigma=SIGMA, **options,
    )  # fmt: skip


def test_the_released_operator_has_our_weights_and_our_diagonal() -> None:
    noise_BSL = RowNoise(0, 0, torch.arange(NUM_ROWS)).normal("s", N, NUM_TOKENS)
    grad = torch.randn(NUM_ROWS, NUM_TOKENS)
    theirs, ours = scores(), scores()
    released = one_hot_topk(theirs, K, noise_BSL=noise_BSL, sigma=SIGMA).sum(dim=1)
    diagonal = shared(perturbed_topk, ours, estimator="diagonal")
    torch.testing.assert_close(released, diagonal)
    (released * grad).sum().backward()
    (diagonal * grad).sum().backward()
    torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-4, atol=1e-4)


def test_defect_06_ours_keeps_bits_where_the_released_keeps_one_hots() -> None:
    kept: dict[str, int] = {}
    gradients = []
    for operator in (perturbed_topk, stored_one_hots_topk):
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        leaf = scores()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            weights = shared(operator, leaf)
            (weights * torch.arange(float(NUM_TOKENS))).sum().backward()
        kept[operator.__name__] = sum(sizes)
        gradients.append(leaf.grad)
    one_hots = NUM_ROWS * N * K * NUM_TOKENS * 4
    assert kept["stored_one_hots_topk"] >= one_hots
    assert kept["perturbed_topk"] <= one_hots / 10
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)
