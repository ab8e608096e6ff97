"""FGLA, the fine-grained label alignment (SCIENCE 2): the VAE terms of both sides and four KL divergences.

    FGLA = a (MSE_img + MSE_txt) + b (KL_img + KL_txt)
         + 1/4 [p (KL(prior || img) + KL(prior || txt)) + c (KL(img || txt) + KL(txt || img))]          at temperature 1

a = 1, b = 1e-4, p = c = 1. KL(target || predicted): the first argument is the target, and by default no gradient flows
into it (defect 11: the released code leaves that to chance). Without a teacher the two prior terms are not computed; the
others keep their weight. The prior are LOGITS of the frozen teacher on the row's image, of its text as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class FglaWeights:
    """The weights a, b, p and c of the equation; a term of weight 0 is not computed."""

    reconstruction: float = 1.0
    kl: float = 1e-4
    prior: float = 1.0
    cross: float = 1.0


def fgla(
    logits: tuple[Tensor, Tensor],
    prior_logits_BC: Tensor | None,
    *,
    reconstruction: tuple[Tensor, Tensor] | None = None,
    kl: tuple[Tensor, Tensor] | None = None,
    weights: FglaWeights | None = None,
    detach_targets: bool = True,
) -> dict[str, Tensor]:
    """Compute FGLA of a global batch; each pair of tensors is (image, text): logits [B, C], VAE terms per row [B].

    Returns "total" (with its graph) and the unweighted parts that were computed, detached: "reconstruction", "kl" (sums
    of both sides), "prior" and "cross" (sums of two KLs).
    """
    weights = weights or FglaWeights()
    log_image_BC, log_text_BC = (torch.log_softmax(side.float(), dim=1) for side in logits)
    terms: dict[str, tuple[float, Tensor]] = {}
    if reconstruction is not None and weights.reconstruction > 0:
        terms["reconstruction"] = weights.reconstruction, sum_of_means(reconstruction)
    if kl is not None and weights.kl > 0:
        terms["kl"] = weights.kl, sum_of_means(kl)
    if prior_logits_BC is not None and weights.prior > 0:
        log_prior_BC = torch.log_softmax(prior_logits_BC.float(), dim=1).detach()
        both = kl_divergence(log_prior_BC, log_image_BC) + kl_divergence(log_prior_BC, log_text_BC)
        terms["prior"] = weights.prior / 4, both
    if weights.cross > 0:
        targets = (log_image_BC, log_text_BC)
        if detach_targets:
            targets = (log_image_BC.detach(), log_text_BC.detach())
        both = kl_divergence(targets[0], log_text_BC) + kl_divergence(targets[1], log_image_BC)
        terms["cross"] = weights.cross / 4, both
    # Starts from a zero on the graph: all weights 0 and no teacher must still reach every parameter.
    total = (log_image_BC.sum() + log_text_BC.sum()) * 0
    for weight, value in terms.values():
        total = total + weight * value
    return {"total": total} | {name: value.detach() for name, (_, value) in terms.items()}


def kl_divergence(log_target_BC: Tensor, log_predicted_BC: Tensor) -> Tensor:
    """Average KL(target || predicted) over rows, in nats, from log-probabilities."""
    return (log_target_BC.exp() * (log_target_BC - log_predicted_BC)).sum(dim=1).mean()


def sum_of_means(sides: tuple[Tensor, Tensor]) -> Tensor:
    """Add the means over rows of the image's and the text's terms."""
    return sides[0].mean() + sides[1].mean()
