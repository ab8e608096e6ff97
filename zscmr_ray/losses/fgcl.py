"""FGCL, the fine-grained contrastive loss (SCIENCE 2), on the cosine distances of the global batch, both directions.

With d_ij = 1 - cos(query_i, item_j), y the classes and i the query:
    neg_i  = relu(d_ii - min_{j: y_j != y_i} d_ij + m1)           mean over rows that have a negative   ("hardest")
           or the mean over j: y_j != y_i of relu(d_ii - d_ij + m1)                                     ("mean", ours)
    weak_i = relu(d_ii - max_{j != i: y_j = y_i} d_ij + m2)       mean over rows that have a same-class non-pair
    FGCL   = the mean over image -> text and text -> image of  mean(neg) + w mean(weak)

Equal contents count as true pairs, in neither minimum nor maximum (losses/relations.py). Where no row has a negative or
a weak one the term is a zero that keeps the graph, and `num_negative` / `num_weak` say so (defects 9 and 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zscmr_ray.losses.relations import Relations

_RELEASED_SENTINEL = 100.0
Negatives = Literal["hardest", "mean"]


@dataclass(frozen=True, slots=True)
class Fgcl:
    """The loss and its parts, scalars: `total` carries the graph, the rest are detached.

    `collapse_value` is what `total` would be if all embeddings of this batch were one point: m1 + w m2 where the batch
    has both kinds of rows. `num_negative`, `num_weak` count the rows that have such a partner.
    """

    total: Tensor
    negative: Tensor
    weak: Tensor
    num_negative: Tensor
    num_weak: Tensor
    collapse_value: Tensor


def fgcl(
    image_BD: Tensor,
    text_BD: Tensor,
    relations: Relations,
    *,
    negative_margin: float = 0.7,
    weak_margin: float = 0.3,
    weak_weight: float = 0.1,
    negatives: Negatives = "hardest",
    without_negative: Literal["left_out", "sentinel"] = "left_out",
    weak_rows: Literal["by_relation", "by_distance"] = "by_relation",
) -> Fgcl:
    """Compute FGCL of unit embeddings [B, D] of a global batch, of any float type, in float32.

    `negatives="hardest"` is published; on a batch of 64 it drives all embeddings to one point before it can order them,
    and `"mean"`, every negative's own hinge averaged, does not (docs/science.md, with the figures).
    `weak_weight=0` leaves the same-class term out. `without_negative="sentinel"` is defect 9 (rows without a negative
    get the distance 100 and count with a loss of 0), `weak_rows="by_distance"` is defect 10 (a same-class non-pair at
    distance 0 is taken for none).
    """
    distance_BB = 1.0 - image_BD.float() @ text_BD.float().T
    negative_terms, weak_terms = [], []
    for query_BB in (distance_BB, distance_BB.T):
        term = negative_term(
            query_BB,
            relations.negative_BB,
            margin=negative_margin,
            negatives=negatives,
            without_negative=without_negative,
        )
        negative_terms.append(term)
        if weak_weight > 0:
            weak_terms.append(_weak(query_BB, relations.weak_BB, weak_margin, weak_rows))
    negative = torch.stack(negative_terms).mean()
    weak = torch.stack(weak_terms).mean() if weak_terms else torch.zeros_like(negative)
    num_negative, num_weak = (m.any(dim=1).sum() for m in (relations.negative_BB, relations.weak_BB))
    at_one_point = negative_margin * (num_negative > 0) + weak_weight * weak_margin * (num_weak > 0)
    total = negative + weak_weight * weak if weak_terms else negative
    return Fgcl(total, negative.detach(), weak.detach(), num_negative, num_weak, at_one_point.float())


def negative_term(
    distance_BB: Tensor,
    negative_BB: Tensor,
    *,
    margin: float,
    negatives: Negatives,
    without_negative: Literal["left_out", "sentinel"] = "left_out",
) -> Tensor:
    """Average the hinges of one direction over the rows that have a negative; see the module for both kinds."""
    if negatives == "hardest":
        return _hardest(distance_BB, negative_BB, margin, without_negative)
    return _every(distance_BB, negative_BB, margin)


def _every(distance_BB: Tensor, negative_BB: Tensor, margin: float) -> Tensor:
    hinges_BB = torch.relu(distance_BB.diagonal()[:, None] - distance_BB + margin) * negative_BB
    num_B = negative_BB.sum(dim=1)
    return _mean_of(hinges_BB.sum(dim=1) / num_B.clamp_min(1), num_B > 0)


def _hardest(distance_BB: Tensor, negative_BB: Tensor, margin: float, missing: str) -> Tensor:
    nothing = _RELEASED_SENTINEL if missing == "sentinel" else torch.inf
    hardest_B = distance_BB.masked_fill(~negative_BB, nothing).amin(dim=1)
    terms_B = torch.relu(distance_BB.diagonal() - hardest_B + margin)
    if missing == "sentinel":
        return terms_B.mean()
    return _mean_of(terms_B, negative_BB.any(dim=1))


def _weak(distance_BB: Tensor, weak_BB: Tensor, margin: float, rows: str) -> Tensor:
    masked_BB = distance_BB.masked_fill(~weak_BB, -torch.inf if rows == "by_relation" else 0.0)
    farthest_B = masked_BB.amax(dim=1)
    has_B = weak_BB.any(dim=1) if rows == "by_relation" else farthest_B != 0
    # Rows without one would give +inf here, whose gradient is NaN even behind a mask.
    farthest_B = torch.where(has_B, farthest_B, distance_BB.diagonal())
    return _mean_of(torch.relu(distance_BB.diagonal() - farthest_B + margin), has_B)


def _mean_of(terms_B: Tensor, counted_B: Tensor) -> Tensor:
    """Average the counted rows; with none of them, a zero that keeps the graph (every parameter gets gradient 0)."""
    return torch.where(counted_B, terms_B, terms_B * 0).sum() / counted_B.sum().clamp_min(1)


def collapse_value(
    *, negative_margin: float = 0.7, weak_margin: float = 0.3, weak_weight: float = 0.1
) -> float:
    """Return FGCL of identical embeddings in a batch with negatives and same-class rows: m1 + w m2.

    >>> round(collapse_value(), 6)
    0.73
    """
    return negative_margin + weak_weight * weak_margin


def is_collapsed(
    fgcl_history: Sequence[float],
    collapse_values: Sequence[float] | float,
    *,
    window: int = 20,
    tolerance: float = 0.01,
) -> bool:
    """Tell whether the last `window` values of FGCL all sit at the value of identical embeddings.

    `collapse_values` is one value, or that of each step's own batch; `tolerance` is relative. Shorter histories have
    not collapsed. The maths alone: training warns (SCIENCE 9).

    >>> is_collapsed([0.9, 0.731, 0.73, 0.729], 0.73, window=3)
    True
    >>> is_collapsed([0.9, 0.8, 0.73, 0.6], 0.73, window=3)
    False
    """
    if len(fgcl_history) < window:
        return False
    at = [collapse_values] * window if isinstance(collapse_values, float) else list(collapse_values)[-window:]
    recent = list(fgcl_history)[-window:]
    return all(abs(value - point) <= tolerance * point for value, point in zip(recent, at, strict=True))
