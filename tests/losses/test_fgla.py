"""FGLA against loops; which targets get a gradient; which terms are computed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zscmr_ray.losses.fgla import FglaWeights, fgla, kl_divergence

NUM_ROWS, CLASSES = 3, 4


def logits(seed: int) -> Tensor:
    return torch.randn(NUM_ROWS, CLASSES, generator=torch.Generator().manual_seed(seed)) * 2


def softmax(row: list[float]) -> list[float]:
    exps = [math.exp(x) for x in row]
    return [x / sum(exps) for x in exps]


def naive_kl(target: Tensor, predicted: Tensor) -> float:
    total = 0.0
    for t_row, p_row in zip(target.tolist(), predicted.tolist(), strict=True):
        for t, p in zip(softmax(t_row), softmax(p_row), strict=True):
            total += t * math.log(t / p)
    return total / len(target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_agrees_with_loops(dtype: torch.dtype) -> None:
    image, text, prior = (logits(seed).to(dtype) for seed in (1, 2, 3))
    mse, kl = (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.5, 2.0])), (torch.ones(3), torch.ones(3))
    result = fgla((image, text), prior, reconstruction=mse, kl=kl)
    pairs = [(prior, image), (prior, text), (image, text), (text, image)]
    four = sum(naive_kl(a.float(), b.float()) for a, b in pairs) / 4
    assert result["total"].item() == pytest.approx(2 + 1 + 1e-4 * 2 + four, rel=1e-5)
    assert result["reconstruction"].item() == pytest.approx(3)
    assert result["kl"].item() == pytest.approx(2)


def test_without_a_teacher_the_prior_terms_are_not_computed() -> None:
    result = fgla((logits(1), logits(2)), None)
    assert "prior" not in result
    expected = (naive_kl(logits(1), logits(2)) + naive_kl(logits(2), logits(1))) / 4
    assert result["total"].item() == pytest.approx(expected, rel=1e-5)


def test_a_term_of_weight_zero_is_not_computed_and_all_of_them_keep_the_graph() -> None:
    image = logits(1).requires_grad_()
    result = fgla((image, logits(2)), logits(3), weights=FglaWeights(0, 0, 0, 0))
    assert set(result) == {"total"}
    result["total"].backward()
    assert image.grad is not None
    assert image.grad.abs().sum() == 0


@pytest.mark.parametrize("detach", [True, False])
def test_defect_11_cross_targets_get_no_gradient(detach: bool) -> None:
    """At text's logits' KL(img || txt) the image is the target: detached, its gradient is KL(txt || img)'s alone."""
    image, text = logits(1).requires_grad_(), logits(2).requires_grad_()
    fgla((image, text), None, weights=FglaWeights(prior=0), detach_targets=detach)["total"].backward()
    alone = logits(1).requires_grad_()
    fixed = torch.log_softmax(logits(2), dim=1)
    (kl_divergence(fixed, torch.log_softmax(alone, dim=1)) / 4).backward()
    assert torch.allclose(image.grad, alone.grad, atol=1e-6) is detach


def test_the_prior_never_gets_a_gradient() -> None:
    prior = logits(3).requires_grad_()
    fgla((logits(1).requires_grad_(), logits(2)), prior, detach_targets=False)["total"].backward()
    assert prior.grad is None


def test_equal_distributions_have_no_divergence() -> None:
    assert fgla((logits(1), logits(1) + 5), logits(1))["total"].item() == pytest.approx(0, abs=1e-6)


def test_extreme_logits_stay_finite() -> None:
    sharp = torch.tensor([[1e4, -1e4, 0.0, 0.0]]).requires_grad_()
    result = fgla((sharp, -sharp), sharp.detach())["total"]
    result.backward()
    assert result.isfinite()
    assert sharp.grad.isfinite().all()
