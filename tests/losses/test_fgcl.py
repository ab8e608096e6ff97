"""FGCL against two nested loops, its degenerate batches, and the value of a collapse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from zscmr_ray.losses.fgcl import Negatives, collapse_value, fgcl, is_collapsed
from zscmr_ray.losses.relations import make_relations


def unit(num_rows: int, seed: int, *, width: int = 5) -> Tensor:
    return functional.normalize(
        torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def naive(
    image: Tensor, text: Tensor, labels: list[set[str]], same: set[tuple[int, int]], kind: str
) -> float:
    """The equations, in dumb loops; `same` holds the pairs of rows with equal contents."""
    size, total = len(labels), 0.0
    for queries, items in ((image, text), (text, image)):
        negatives, weaks = [], []
        for i in range(size):
            own = 1 - float(queries[i] @ items[i])
            others = [j for j in range(size) if j != i and (i, j) not in same and (j, i) not in same]
            distances = {j: 1 - float(queries[i] @ items[j]) for j in others}
            far = [distances[j] for j in others if not labels[i] & labels[j]]
            near = [distances[j] for j in others if labels[i] & labels[j]]
            if far:
                hinges = [max(0.0, own - distance + 0.7) for distance in far]
                negatives.append(max(hinges) if kind == "hardest" else sum(hinges) / len(hinges))
            if near:
                weaks.append(max(0.0, own - max(near) + 0.3))
        total += sum(negatives) / max(1, len(negatives)) + 0.1 * sum(weaks) / max(1, len(weaks))
    return total / 2


@pytest.mark.parametrize("negatives", ["hardest", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "labels",
    [
        ["a", "a", "b", "b", "b", "c"],
        ["ab", "b", "bc", "c", "a", "d"],
        ["a", "b", "c", "d", "e", "f"],
        ["a", "a", "a", "a", "a", "a"],
    ],
)
def test_agrees_with_loops(labels: list[str], dtype: torch.dtype, negatives: Negatives) -> None:
    image, text = unit(6, 1).to(dtype), unit(6, 2).to(dtype)
    captions = ["p", "q", "r", "p", "s", "t"]
    relations = make_relations([tuple(names) for names in labels], caption_keys=captions)
    expected = naive(image.float(), text.float(), [set(names) for names in labels], {(0, 3)}, negatives)
    assert fgcl(image, text, relations, negatives=negatives).total.item() == pytest.approx(expected, abs=1e-5)


def test_is_symmetric_in_its_sides() -> None:
    relations = make_relations([("a",), ("a",), ("b",), ("b",)])
    one, other = fgcl(unit(4, 1), unit(4, 2), relations), fgcl(unit(4, 2), unit(4, 1), relations)
    assert one.total.item() == pytest.approx(other.total.item(), abs=1e-6)


def test_defect_09_a_single_class_batch_keeps_the_graph_and_says_so() -> None:
    image, text = unit(3, 1).requires_grad_(), unit(3, 2).requires_grad_()
    relations = make_relations([("a",)] * 3)
    result = fgcl(image, text, relations, weak_weight=0)
    assert result.total.item() == 0
    assert result.num_negative.item() == 0
    result.total.backward()
    assert image.grad is not None
    assert image.grad.abs().sum() == 0


def test_defect_09_rows_without_a_negative_are_left_out_of_the_mean() -> None:
    """Row 0 shares a class with every other; the sentinel counts it as a row of loss 0 and so dilutes the rest."""
    image, text = unit(3, 1), unit(3, 2)
    relations = make_relations([("a", "b"), ("a",), ("b",)])
    ours, released = (
        fgcl(image, text, relations, weak_weight=0, without_negative=kind)
        for kind in ("left_out", "sentinel")
    )
    assert ours.num_negative.item() == 2
    assert ours.total.item() == pytest.approx(naive_negative(image, text, [(1, 2), (2, 1)]), abs=1e-6)
    assert released.total.item() == pytest.approx(ours.total.item() * 2 / 3, abs=1e-6)


def naive_negative(image: Tensor, text: Tensor, pairs: list[tuple[int, int]]) -> float:
    terms = [
        max(0.0, float(q[i] @ g[j]) - float(q[i] @ g[i]) + 0.7)
        for q, g in ((image, text), (text, image))
        for i, j in pairs
    ]
    return sum(terms) / len(terms)


def test_defect_10_a_weak_positive_at_distance_zero_still_counts() -> None:
    """Collapsed same-class rows are what the term is for; looking for distance != 0 finds none of them."""
    point = torch.zeros(4, 8)
    point[:, 0] = 1.0
    relations = make_relations([("a",), ("a",), ("b",), ("b",)])
    ours = fgcl(point, point, relations)
    released = fgcl(point, point, relations, weak_rows="by_distance")
    assert ours.weak.item() == pytest.approx(0.3)
    assert ours.num_weak.item() == 4
    assert released.weak.item() == 0


@pytest.mark.parametrize(
    "labels", [["a"], ["a", "a"], ["a", "b"]], ids=["one row", "one class", "no weak positive"]
)
def test_degenerate_batches_have_finite_gradients_for_every_row(labels: list[str]) -> None:
    image, text = unit(len(labels), 1).requires_grad_(), unit(len(labels), 2).requires_grad_()
    result = fgcl(image, text, make_relations([(name,) for name in labels]))
    result.total.backward()
    assert result.total.isfinite()
    assert image.grad.isfinite().all()
    assert text.grad.isfinite().all()


def test_gradient_agrees_with_finite_differences() -> None:
    image, text = unit(5, 1).requires_grad_(), unit(5, 2)
    relations = make_relations([(name,) for name in "aabbc"])
    fgcl(image, text, relations).total.backward()
    direction = torch.randn(5, 5, generator=torch.Generator().manual_seed(3))
    step = 1e-2
    with torch.no_grad():
        up = fgcl(image + step * direction, text, relations).total
        down = fgcl(image - step * direction, text, relations).total
    assert ((up - down) / (2 * step)).item() == pytest.approx((image.grad * direction).sum().item(), rel=0.02)


def test_identical_embeddings_sit_at_the_collapse_value() -> None:
    point = functional.normalize(torch.ones(4, 8), dim=1)
    both = fgcl(point, point, make_relations([("a",), ("a",), ("b",), ("b",)]))
    assert both.total.item() == pytest.approx(collapse_value(), abs=1e-6)
    assert both.collapse_value.item() == pytest.approx(0.73)
    no_weak = fgcl(point, point, make_relations([("a",), ("b",), ("c",), ("d",)]))
    assert no_weak.total.item() == pytest.approx(no_weak.collapse_value.item(), abs=1e-6)
    assert no_weak.collapse_value.item() == pytest.approx(0.7)


def test_is_collapsed_needs_a_whole_window_at_the_value() -> None:
    assert not is_collapsed([0.73] * 19, 0.73)
    assert is_collapsed([1.5] + [0.73] * 20, 0.73)
    assert not is_collapsed([0.73] * 10 + [0.65] + [0.73] * 9, 0.73)
    assert is_collapsed([0.7, 0.73, 0.7], [0.7, 0.73, 0.7], window=3)
    assert not is_collapsed([float("nan")] * 20, 0.73)
    assert not is_collapsed([], 0.73)
