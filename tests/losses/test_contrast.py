"""Hinge and InfoNCE against two nested loops, for every reading of same-class rows, and degenerate batches."""

from __future__ import annotations

import math

import pytest
import torch

from zscmr_ray.losses.contrast import hinge, info_nce
from zscmr_ray.losses.relations import make_relations

NAMES, CAPTIONS = "aabbcc", "uvwuxy"
SAME_CLASS = ("negative", "ignored", "positive")


def similarity(seed: int = 0) -> torch.Tensor:
    return torch.rand(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def relations(names: str = NAMES, captions: str | None = CAPTIONS):
    return make_relations([(name,) for name in names], caption_keys=captions)


def kind(i: int, j: int, same_class: str) -> str:
    if i == j or CAPTIONS[i] == CAPTIONS[j]:
        return "positive"
    return same_class if NAMES[i] == NAMES[j] else "negative"


@pytest.mark.parametrize("same_class", SAME_CLASS[:2])
@pytest.mark.parametrize("negatives", ["hardest", "mean"])
def test_hinge_is_the_loop(same_class: str, negatives: str) -> None:
    values, total = similarity(), 0.0
    for matrix in (values, values.T):
        for i in range(6):
            hinges = [
                max(0.0, 0.2 - float(matrix[i, i]) + float(matrix[i, j]))
                for j in range(6)
                if kind(i, j, same_class) == "negative"
            ]
            total += (max(hinges) if negatives == "hardest" else sum(hinges) / len(hinges)) / 12
    found = hinge(values, relations(), margin=0.2, negatives=negatives, same_class=same_class)
    assert found.item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("same_class", SAME_CLASS)
def test_info_nce_is_the_loop(same_class: str) -> None:
    values, total = similarity() / 0.3, 0.0
    for matrix in (values, values.T):
        for i in range(6):
            kinds = [kind(i, j, same_class) for j in range(6)]
            log_sum = math.log(sum(math.exp(matrix[i, j]) for j in range(6) if kinds[j] != "ignored"))
            own = [log_sum - float(matrix[i, j]) for j in range(6) if kinds[j] == "positive"]
            total += sum(own) / len(own) / 12
    assert info_nce(values, relations(), same_class=same_class).item() == pytest.approx(total, rel=1e-9)


def test_without_duplicates_info_nce_is_cross_entropy() -> None:
    values, own = similarity(), torch.arange(6)
    expected = (
        torch.nn.functional.cross_entropy(values, own) + torch.nn.functional.cross_entropy(values.T, own)
    ) / 2
    torch.testing.assert_close(info_nce(values, relations(captions=None)), expected)


@pytest.mark.parametrize("same_class", SAME_CLASS)
def test_gradients(same_class: str) -> None:
    values = similarity(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: info_nce(x, relations(), same_class=same_class), (values,))
    assert torch.autograd.gradcheck(lambda x: hinge(x, relations(), negatives="mean"), (values,))


@pytest.mark.parametrize("loss", [hinge, info_nce])
@pytest.mark.parametrize(("names", "captions"), [("a", "u"), ("aaa", "uuu")])
def test_rows_without_negatives_are_a_finite_loss_with_a_graph(loss, names: str, captions: str) -> None:
    values = similarity()[: len(names), : len(names)].clone().requires_grad_()
    loss(values, relations(names, captions)).backward()
    assert values.grad is not None and values.grad.isfinite().all()
    assert hinge(values, relations(names, captions)).item() == 0.0
