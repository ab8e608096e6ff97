"""Perturbed top-k: against naive loops, the exact case L = 2, and a central difference; padding, ties and NaN."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zscmr_ray.models.noise import RowNoise
from zscmr_ray.models.topk import hard_topk, num_selected, perturbed_topk, token_mask

SIGMA = 0.05


def select(scores: Tensor, lengths: list[int], ks: list[int], *, n: int = 64, **options: object) -> Tensor:
    noise = options.pop("noise", None) or RowNoise(0, 0, torch.arange(len(scores)))
    return perturbed_topk(
        scores, lengths_B=torch.tensor(lengths), k_B=torch.tensor(ks), noise=noise, site="s",
        num_samples=n, sigma=SIGMA, **options,
    )  # fmt: skip


def drawn_noise(lengths: list[int], n: int) -> list[Tensor]:
    generators = RowNoise(0, 0, torch.arange(len(lengths))).generators("s")
    return [torch.empty(n, k).normal_(generator=g) for g, k in zip(generators, lengths, strict=True)]


def random_scores(num_rows: int, num_tokens: int) -> Tensor:
    return torch.rand(num_rows, num_tokens, generator=torch.Generator().manual_seed(1)).mul(0.2).add(0.4)


def test_weights_and_gradient_agree_with_naive_loops() -> None:
    lengths, ks, n = [7, 3, 5, 1], [2, 1, 5, 1], 40
    scores = random_scores(4, 7).requires_grad_()
    grad = torch.randn(4, 7, generator=torch.Generator().manual_seed(2))
    weights = select(scores, lengths, ks, n=n)
    (weights * grad).sum().backward()
    for b, z in enumerate(drawn_noise(lengths, n)):
        one_hots = torch.zeros(n, lengths[b])
        for i in range(n):
            noisy = scores[b, : lengths[b]].detach() + SIGMA * z[i]
            for j in sorted(range(lengths[b]), key=lambda j: -float(noisy[j]))[: ks[b]]:
                one_hots[i, j] = 1
        products = one_hots @ grad[b, : lengths[b]]
        expected = torch.zeros(lengths[b])
        for i in range(n):
            expected += (products[i] - products.mean()) * z[i] / (n * SIGMA) * n / (n - 1)
        torch.testing.assert_close(weights[b, : lengths[b]].detach(), one_hots.mean(0))
        torch.testing.assert_close(scores.grad[b, : lengths[b]], expected, rtol=1e-4, atol=1e-4)


def test_defect_05_exact_case_of_two_tokens() -> None:
    scores = torch.tensor([[0.52, 0.50]], requires_grad=True)
    u = 0.02 / (SIGMA * math.sqrt(2))
    probability = 0.5 * (1 + math.erf(u / math.sqrt(2)))
    slope = math.exp(-u * u / 2) / math.sqrt(2 * math.pi) / (SIGMA * math.sqrt(2))
    weights = select(scores, [2], [1], n=400_000)
    weights[0, 0].backward()
    assert weights[0].tolist() == pytest.approx([probability, 1 - probability], abs=0.004)
    assert scores.grad[0].tolist() == pytest.approx([slope, -slope], rel=0.02)
    # The released estimator misses the cross term altogether: 5.3 and 0 where the truth is 5.42 and -5.42.
    scores.grad = None
    select(scores, [2], [1], n=400_000, estimator="diagonal")[0, 0].backward()
    assert scores.grad[0, 1] == 0


def test_defect_05_full_jacobian_against_a_central_difference() -> None:
    scores = torch.tensor([[0.50, 0.53, 0.47, 0.55]])
    noise = torch.randn(1_000_000, 4, generator=torch.Generator().manual_seed(3))
    step = 0.01

    def mean_weights(values: Tensor) -> Tensor:
        picked = (values + SIGMA * noise).topk(2, dim=1).indices
        return torch.bincount(picked.flatten(), minlength=4) / len(noise)

    jacobian = torch.zeros(4, 4)  # [token moved, weight]
    for j in range(4):
        moved = torch.zeros(1, 4)
        moved[0, j] = step
        jacobian[j] = (mean_weights(scores + moved) - mean_weights(scores - moved)) / (2 * step)
    estimate = torch.zeros(4, 4)
    for i in range(4):
        leaf = scores.clone().requires_grad_()
        select(leaf, [4], [2], n=400_000)[0, i].backward()
        estimate[:, i] = leaf.grad[0]
    assert (estimate - jacobian).norm() < 0.03 * jacobian.norm()
    assert estimate.diagonal().tolist() == pytest.approx(jacobian.diagonal().tolist(), rel=0.03)


def test_the_gradient_of_a_constant_is_zero() -> None:
    """The weights of a row always sum to k: centring makes that exact for every draw, not on average."""
    scores = random_scores(2, 9).requires_grad_()
    select(scores, [9, 4], [3, 2], n=16).sum().backward()
    assert scores.grad.abs().max() < 1e-4


def test_defect_03_padding_is_never_selected_and_gets_no_gradient() -> None:
    scores = random_scores(2, 8)
    scores[:, 5:] = torch.tensor([1e9, torch.inf, torch.nan])
    scores.requires_grad_()
    weights = select(scores, [5, 5], [2, 2])
    (weights * torch.arange(8.0)).sum().backward()
    assert weights[:, 5:].abs().sum() == 0
    assert scores.grad[:, 5:].abs().sum() == 0
    assert scores.grad[:, :5].abs().sum() > 0


def test_a_row_alone_and_in_a_padded_batch_get_the_same_weights() -> None:
    scores = random_scores(3, 600)
    batch = select(scores, [600, 4, 300], [60, 1, 30], n=500)
    alone = select(scores[2:, :300], [300], [30], n=500, noise=RowNoise(0, 0, torch.tensor([2])))
    assert torch.equal(batch[2:, :300], alone)


@pytest.mark.parametrize("length", [5, 16, 300])
def test_ties_go_to_the_earlier_position_and_keep_the_sum(length: int) -> None:
    # At 2**24 the noise vanishes in float32 rounding: everything is tied in every sample.
    scores = torch.full((1, length), 2.0**24)
    weights = select(scores, [length], [3])
    assert weights[0].tolist() == [1.0] * 3 + [0.0] * (length - 3)


def test_each_row_sums_to_its_k() -> None:
    lengths = [49, 12, 1, 30]
    weights = select(random_scores(4, 49), lengths, [5, 2, 1, 30], n=1000)
    assert weights.sum(1).tolist() == pytest.approx([5, 2, 1, 30], abs=1e-4)
    assert weights[3, :30].tolist() == [1.0] * 30


def test_a_diverged_row_is_not_hidden() -> None:
    scores = random_scores(2, 6)
    scores[0, 1] = torch.nan
    weights = select(scores, [6, 6], [2, 2])
    assert weights[0].isnan().all()
    assert weights[1].isfinite().all()


def test_a_gradient_that_is_not_a_number_is_not_hidden() -> None:
    """The kernel ignores the processor's invalid flag (numpy#24067), never the value itself."""
    scores = random_scores(2, 6).requires_grad_()
    grad = torch.ones(2, 6)
    grad[1, 2] = torch.nan
    select(scores, [6, 6], [2, 2]).backward(grad)
    assert scores.grad[0].isfinite().all() and scores.grad[1].isnan().all()


def test_bfloat16_scores_work_in_float32() -> None:
    scores = random_scores(2, 10).bfloat16().requires_grad_()
    weights = select(scores, [10, 7], [2, 2])
    assert weights.dtype == torch.float32
    (weights * torch.arange(10.0)).sum().backward()
    assert scores.grad.dtype == torch.bfloat16
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("estimator", ["centred", "diagonal"])
def test_the_torch_kernel_agrees_with_the_numpy_kernel(
    monkeypatch: pytest.MonkeyPatch, estimator: str
) -> None:
    from zscmr_ray.models import topk

    lengths, ks = [40, 700, 3], [4, 70, 0]
    grad = torch.randn(3, 700, generator=torch.Generator().manual_seed(5))
    results = []
    for kernel in (topk._NumpyKernel, topk._TorchKernel):
        monkeypatch.setattr(topk, "_NumpyKernel", kernel)
        monkeypatch.setattr(topk, "_GROUP_ENTRIES", 2 * 700 * 400)  # two groups of rows
        scores = random_scores(3, 700).requires_grad_()
        weights = select(scores, lengths, ks, n=400, estimator=estimator)
        (weights * grad).sum().backward()
        results.append((weights.detach(), scores.grad))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-3)


def test_hard_topk_takes_exactly_k_and_breaks_ties_by_position() -> None:
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 9.0, 9.0]])
    weights = hard_topk(scores, lengths_B=torch.tensor([5, 3]), k_B=torch.tensor([3, 1]))
    assert weights.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("length", "ceil", "floor", "released"),
    [
        (1, 1, 1, 0),
        (9, 1, 1, 0),
        (10, 1, 1, 1),
        (11, 2, 1, 1),
        (30, 3, 3, 3),
        (49, 5, 4, 4),
        (500, 50, 50, 50),
    ],
)
def test_defect_02_k_is_at_least_one(length: int, ceil: int, floor: int, released: int) -> None:
    lengths = torch.tensor([length])
    assert num_selected(lengths, ratio=0.1).item() == ceil
    assert num_selected(lengths, ratio=0.1, rounding="floor").item() == floor
    assert num_selected(lengths, ratio=0.1, rounding="released").item() == released


def test_k_never_exceeds_the_length() -> None:
    assert num_selected(torch.tensor([1, 2, 3]), ratio=1.0).tolist() == [1, 2, 3]


def test_token_mask() -> None:
    assert token_mask(torch.tensor([2, 0]), 3).tolist() == [[True, True, False], [False, False, False]]
