"""The region-embedding head of FGAN (SCIENCE 2): which tokens matter, and one unit vector pooled from them.

    scores = sigmoid(Linear(attention(tokens)))     the attention feeds the scorer and nothing else
    W      = perturbed top-k(scores)                sum k, or another `selection`
    region = unit(LayerNorm(Linear(sum_j W_j token_j / k)))      of the RAW tokens

One head per modality. Padding takes no part: not in attention, scores, selection or k (defect 3). In eval the selection
is deterministic (defect 4). It is not the operator itself (topk.py) nor the trunk below (trunks.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.noise import RowNoise
from zscmr_ray.models.topk import Estimator, Rounding, hard_topk, num_selected, perturbed_topk, token_mask
from zscmr_ray.models.topk_released import stored_one_hots_topk

SelectionKind = Literal["topk", "mean"]
EvalSelection = Literal["hard", "soft", "released"]


@dataclass(frozen=True, slots=True)
class Selection:
    """How tokens are chosen; `estimator`, `rounding`, `divisor` and `memory` have released values for the study."""

    kind: SelectionKind = "topk"
    eval_kind: EvalSelection = "hard"
    ratio: float = 0.1
    rounding: Rounding = "ceil"
    num_noise_samples: int = 1000
    sigma: float = 0.05
    estimator: Estimator = "centred"
    divisor: Literal["k", "ratio"] = "k"
    memory: Literal["bits", "one_hots"] = "bits"


class RegionHead(nn.Module):
    """Score, select and pool the tokens of one modality; not `has_padding` where every row has all its tokens (images)."""

    def __init__(
        self,
        width: int,
        *,
        num_heads: int = 4,
        attention_dropout: float = 0.1,
        selection: Selection | None = None,
        has_padding: bool = True,
    ) -> None:
        super().__init__()
        self.selection = selection or Selection()
        if (
            self.selection.kind == "topk"
        ):  # the mean needs no scores: no layer is made that no loss would train
            self.scorer = TokenScorer(
                width, num_heads=num_heads, dropout=attention_dropout, has_padding=has_padding
            )
        self.project = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))

    def forward(
        self, tokens_BLD: Tensor, lengths_B: Tensor, *, noise: RowNoise | None, side: str
    ) -> tuple[Tensor, Tensor]:
        """Return the unit region embedding [B, D] and the selection weights [B, L], both float32.

        `noise` is needed in training and ignored in eval; `side` ("image" or "text") keeps the modalities' noise apart.
        """
        if self.selection.kind == "mean":
            mask_BL = token_mask(lengths_B, tokens_BLD.shape[1])
            weights_BL = mask_BL.float() / lengths_B[:, None]
            divisor_B1 = torch.ones_like(weights_BL[:, :1])
        else:
            k_B = num_selected(lengths_B, ratio=self.selection.ratio, rounding=self.selection.rounding)
            scores_BL = self.scorer(tokens_BLD, lengths_B, noise=noise, site=f"{side}.attention")
            weights_BL = self._select(scores_BL, lengths_B, k_B, noise=noise, side=side)
            divisor_B1 = self._divisor(k_B)
        pooled_BD = torch.einsum("bl,bld->bd", weights_BL, tokens_BLD.float()) / divisor_B1
        embedding_BD = self.project(pooled_BD.to(tokens_BLD.dtype))
        return functional.normalize(embedding_BD.float(), dim=1), weights_BL

    def _select(
        self, scores_BL: Tensor, lengths_B: Tensor, k_B: Tensor, *, noise: RowNoise | None, side: str
    ) -> Tensor:
        selection = self.selection
        if not self.training:
            match selection.eval_kind:
                case "hard":
                    return hard_topk(scores_BL, lengths_B=lengths_B, k_B=k_B)
                case (
                    "soft"
                ):  # the expectation under one fixed draw that all rows share: a function of the row alone
                    noise = RowNoise.constant(len(scores_BL))
                case "released":  # defect 4: another draw at every call
                    noise = RowNoise(int(torch.randint(2**62, ())), 0, torch.arange(len(scores_BL)))
        assert noise is not None, "training draws noise: pass noise=RowNoise(seed, step, rows)"
        operator = (
            stored_one_hots_topk
            if selection.memory == "one_hots"
            else partial(perturbed_topk, estimator=selection.estimator)
        )
        return operator(
            scores_BL,
            lengths_B=lengths_B,
            k_B=k_B,
            noise=noise,
            site=f"{side}.topk",
            num_samples=selection.num_noise_samples,
            sigma=selection.sigma,
        )

    def _divisor(self, k_B: Tensor) -> Tensor:
        if self.selection.divisor == "ratio":  # defect 1
            return torch.full_like(k_B, self.selection.ratio, dtype=torch.float32)[:, None]
        return k_B.clamp_min(1).to(torch.float32)[:, None]


class TokenScorer(nn.Module):
    """Multi-head self-attention, its output projection and Linear(D, 1) -> sigmoid: one score per token.

    Nothing else reads the attention's output, and the score is linear in its values: with w the scoring row and
    u = w W_out, the score of token i is  sum_h sum_j A_hij (u_h W_v,h x_j + u_h b_v,h) + w b_out + b.  So each head
    carries one number per token instead of D / H, and the D x D value and output products vanish, to the same result
    and gradients: 195 ms instead of 355, forward and backward, at 64 x 49 x 512 on one core. Dropout on A is keyed by
    row; torch's own would draw from a global stream.
    """

    def __init__(self, width: int, *, num_heads: int, dropout: float, has_padding: bool = True) -> None:
        super().__init__()
        if width % num_heads:
            raise ConfigError(
                "model.width is not divisible by model.num_heads",
                got=f"{width} / {num_heads}",
                remedy=f"use model.width={width - width % num_heads or num_heads}",
            )
        self.num_heads, self.dropout, self.has_padding = num_heads, dropout, has_padding
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        # As torch.nn.MultiheadAttention starts: uniform Xavier weights, zero biases.
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens_BLD: Tensor, lengths_B: Tensor, *, noise: RowNoise | None, site: str) -> Tensor:
        """Return scores in (0, 1), [B, L] float32; what stands in the padding means nothing."""
        attention_BHLL = self._attention(tokens_BLD, lengths_B)
        if self.training and self.dropout > 0:
            assert noise is not None, "training draws noise: pass noise=RowNoise(seed, step, rows)"
            attention_BHLL = attention_BHLL * noise.attention_keep(
                site,
                lengths_B.tolist(),
                num_heads=self.num_heads,
                num_tokens=tokens_BLD.shape[1],
                drop=self.dropout,
                device=tokens_BLD.device,
            )
        value_HD, bias_H, constant = self._folded_values()
        values_BHL = functional.linear(tokens_BLD, value_HD, bias_H).float().transpose(1, 2)
        logits_BL = (attention_BHLL @ values_BHL.unsqueeze(3)).squeeze(3).sum(dim=1) + constant.float()
        return torch.sigmoid(logits_BL)

    def _attention(self, tokens_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        num_rows, num_tokens, width = tokens_BLD.shape
        qk_BLE = functional.linear(tokens_BLD, self.qkv.weight[: 2 * width], self.qkv.bias[: 2 * width])
        split_2BHLd = qk_BLE.view(num_rows, num_tokens, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q_BHLd, k_BHLd = split_2BHLd.unbind(0)
        # The queries are scaled, L / d times fewer numbers than the logits; nor are these masked where there is no padding.
        logits_BHLL = ((q_BHLd * q_BHLd.shape[-1] ** -0.5) @ k_BHLd.transpose(2, 3)).float()
        if self.has_padding:
            mask_BL = token_mask(lengths_B, num_tokens)
            logits_BHLL = logits_BHLL.masked_fill(~mask_BL[:, None, None], -torch.inf)
        return logits_BHLL.softmax(dim=3)

    def _folded_values(self) -> tuple[Tensor, Tensor, Tensor]:
        width = self.out.in_features
        u_H1d = (self.score.weight @ self.out.weight).view(self.num_heads, 1, -1)
        value_HdD = self.qkv.weight[2 * width :].view(self.num_heads, -1, width)
        bias_Hd1 = self.qkv.bias[2 * width :].view(self.num_heads, -1, 1)
        constant = (self.score.weight @ self.out.bias + self.score.bias).squeeze(0)
        return (u_H1d @ value_HdD).squeeze(1), (u_H1d @ bias_Hd1).flatten(), constant
