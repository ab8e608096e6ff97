"""Contrastive losses of a similarity matrix [B, B] of a global batch, rows images, columns texts, both directions.

With s_ij the similarity, P_i the rows that count as true pairs of i, N_i its negatives:
    hinge_i    = relu(m - s_ii + max_{j in N_i} s_ij)                                    VSE++ (Faghri et al., BMVC 2018)
    InfoNCE_i  = -1/|P_i| sum_{p in P_i} log( e^{s_ip / t} / sum_{a in P_i or N_i} e^{s_ia / t} )
Rows of equal content are true pairs always (losses/relations.py). What same-class non-pairs are is `same_class`:
negatives, left out of both sets, or positives; InfoNCE with positives is the supervised contrastive loss (Khosla et al.,
NeurIPS 2020) between the modalities. Not FGCL (losses/fgcl.py), which has a margin of its own for them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zscmr_ray.losses.fgcl import Negatives, negative_term
from zscmr_ray.losses.relations import Relations

SameClass = Literal["negative", "ignored", "positive"]


def hinge(
    similarity_BB: Tensor,
    relations: Relations,
    *,
    margin: float = 0.2,
    negatives: Negatives = "hardest",
    same_class: SameClass = "negative",
) -> Tensor:
    """Compute the bidirectional hinge, averaged over rows that have a negative and over both directions.

    `negatives="mean"` averages every negative's hinge. `same_class="positive"` pulls nothing here and reads as "ignored".
    A batch without negatives gives a zero that keeps the graph.
    """
    negative_BB = (
        relations.negative_BB | relations.weak_BB if same_class == "negative" else relations.negative_BB
    )
    terms = [
        negative_term(-query_BB, negative_BB, margin=margin, negatives=negatives)
        for query_BB in (similarity_BB, similarity_BB.T)
    ]
    return torch.stack(terms).mean()


def info_nce(logits_BB: Tensor, relations: Relations, *, same_class: SameClass = "negative") -> Tensor:
    """Compute InfoNCE of similarities already divided by the temperature, averaged over rows and both directions."""
    positive_BB = (
        relations.positive_BB | relations.weak_BB if same_class == "positive" else relations.positive_BB
    )
    left_out_BB = relations.weak_BB if same_class == "ignored" else torch.zeros_like(positive_BB)
    terms = []
    for query_BB in (logits_BB, logits_BB.T):
        log_total_B1 = query_BB.masked_fill(left_out_BB, -torch.inf).logsumexp(dim=1, keepdim=True)
        own_BB = (log_total_B1 - query_BB).masked_fill(~positive_BB, 0.0)
        terms.append((own_BB.sum(dim=1) / positive_BB.sum(dim=1)).mean())
    return torch.stack(terms).mean()
