"""Attention over image regions, from the image alone or fused with a text, and the score of every pair (models/imfa.py).

    text-free   weights_i = softmax_r( w . tanh(W x_ir) )
    fused       weights_ij = softmax_r( w . tanh(fuse(k_ir, q_j)) ),  k_ir = W_r x_ir,  q_j = W_t s_j
                fuse: hadamard k * q;  sum k + q;  concat a two-layer perceptron of [r ; t], whose first layer is k + q
    score_ij  = cos( sum_r weights_ijr x_ir , t_j )

The fused vector v_ij of a pair is never made: with P_ijr = <x_ir, t_j> and the Gram matrix G_i = X_i X_i', the score is
<weights_ij, P_ij> / sqrt(weights_ij' G_i weights_ij) for a unit t_j. What is large, N x M x R x A, is made for a few texts
at a time and made again in the backward pass.

Legend: N images, M texts, R regions, D width, A attention width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

Fusion = Literal["hadamard", "sum", "concat"]

# Entries of N x m x R x A worked on at a time: 16 MB in float32, near the cache; some three such tensors are alive.
CHUNK_ENTRIES = 1 << 22
_SMALLEST_NORM = 1e-12


class RegionAttention(nn.Module):
    """The text-free attention of ZS_INN_SELF, also the one that serves IMFA."""

    def __init__(self, width: int, attention_width: int) -> None:
        super().__init__()
        self.key = nn.Linear(width, attention_width)
        # No bias: it would shift every logit alike, which the softmax does not see.
        self.score = nn.Linear(attention_width, 1, bias=False)

    def forward(self, regions_BRD: Tensor) -> Tensor:
        """Return the logarithms of the weights, [B, R] float32."""
        logits_BR: Tensor = self.score(torch.tanh(self.key(regions_BRD))).squeeze(2)
        return widened(logits_BR).log_softmax(dim=1)


class PairScores(nn.Module):
    """The fused attention's own parameters and the score of every image with every text."""

    def __init__(self, attention_width: int, *, fusion: Fusion, chunk_entries: int = CHUNK_ENTRIES) -> None:
        super().__init__()
        self.fusion, self.chunk_entries = fusion, chunk_entries
        bound = attention_width**-0.5
        self.score = nn.Parameter(torch.empty(attention_width).uniform_(-bound, bound))
        # Parameters of this module and not of a Linear inside: ZeRO 3 gathers them where this module is called.
        self.mix_weight = self.mix_bias = None
        if fusion == "concat":
            self.mix_weight = nn.Parameter(
                torch.empty(attention_width, attention_width).uniform_(-bound, bound)
            )
            self.mix_bias = nn.Parameter(torch.empty(attention_width).uniform_(-bound, bound))

    def forward(
        self,
        regions_NRD: Tensor,
        keys_NRA: Tensor,
        text_MD: Tensor,
        query_MA: Tensor,
        *,
        with_own: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the scores [N, M] of projected regions with unit text vectors, at least float32.

        `with_own` (N = M): also the attention of each image with its own text, [N, R], detached: what is distilled.
        """
        parameters = [p for p in (self.score, self.mix_weight, self.mix_bias) if p is not None]
        regions, keys, text, query, *wide = (
            widened(value) for value in (regions_NRD, keys_NRA, text_MD, query_MA, *parameters)
        )
        gram_NRR = regions @ regions.transpose(1, 2)
        size = max(1, self.chunk_entries // max(1, keys.numel()))
        scores_NM: Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]
            partial(_score, fusion=self.fusion), size, regions, keys, gram_NRR, *wide, text, query
        )
        if not with_own:
            return scores_NM, None
        with torch.no_grad():
            own_NR = _attention(keys[:, None], query[:, None], *wide, fusion=self.fusion).softmax(2)[:, 0]
        return scores_NM, own_NR

    @torch.inference_mode()
    def one_text(self, regions_NRD: Tensor, keys_NRA: Tensor, text_D: Tensor, query_A: Tensor) -> Tensor:
        """Return the scores [N] of a single text: its fused vectors are made, at an R-th of the Gram matrices' cost."""
        parameters = [widened(p) for p in (self.score, self.mix_weight, self.mix_bias) if p is not None]
        regions, keys, text, query = (widened(v) for v in (regions_NRD, keys_NRA, text_D, query_A))
        logits_NR = _attention(keys[:, None], query[None, None], *parameters, fusion=self.fusion)[:, 0]
        fused_ND = torch.bmm(logits_NR.softmax(dim=1).unsqueeze(1), regions).squeeze(1)
        scores_N: Tensor = (fused_ND @ text) * (fused_ND * fused_ND).sum(dim=1).clamp_min(
            _SMALLEST_NORM
        ).rsqrt()
        return scores_N


def widened(value: Tensor) -> Tensor:
    """The same values in float32, or float64 where they are."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _score(
    regions_NRD: Tensor,
    keys_NRA: Tensor,
    gram_NRR: Tensor,
    *rest: Tensor,
    fusion: Fusion,
) -> Tensor:
    *parameters, text_MD, query_MA = rest
    weights_NMR = _attention(keys_NRA[:, None], query_MA[None], *parameters, fusion=fusion).softmax(dim=2)
    inner_NMR = (regions_NRD @ text_MD.T).transpose(1, 2)
    dot_NM = (weights_NMR * inner_NMR).sum(dim=2)
    squared_NM = ((weights_NMR @ gram_NRR) * weights_NMR).sum(dim=2)
    return dot_NM * squared_NM.clamp_min(_SMALLEST_NORM).rsqrt()


def _attention(keys_N1RA: Tensor, query_NMA: Tensor, score_A: Tensor, *mix: Tensor, fusion: Fusion) -> Tensor:
    """Return the attention logits [N, M, R]."""
    query_NM1A = query_NMA.unsqueeze(-2)
    if fusion == "hadamard":
        return torch.tanh(keys_N1RA * query_NM1A) @ score_A
    joined_NMRA = keys_N1RA + query_NM1A
    if fusion == "concat":
        weight_AA, bias_A = mix
        joined_NMRA = torch.relu(joined_NMRA) @ weight_AA.T + bias_A
    return torch.tanh(joined_NMRA) @ score_A


class _Chunked(torch.autograd.Function):
    """f(shared..., text, query) for `size` texts at a time, side by side; backward computes each chunk again."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
        ctx.function, ctx.size = function, size
        ctx.save_for_backward(*tensors)
        *shared, text_MD, query_MA = tensors
        parts = [function(*shared, text_MD[c], query_MA[c]) for c in _slices(len(text_MD), size)]
        return torch.cat(parts, dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NM: Tensor) -> tuple[Tensor | None, ...]:
        *shared, text_MD, query_MA = (value.detach() for value in ctx.saved_tensors)
        needed = ctx.needs_input_grad[2:]
        inputs = [value.requires_grad_(need) for value, need in zip(shared, needed, strict=False)]
        totals: list[Any] = [
            torch.zeros_like(v) if need else None for v, need in zip(inputs, needed, strict=False)
        ]
        sides: list[list[Tensor]] = [[], []]
        for c in _slices(len(text_MD), ctx.size):
            own = [
                value[c].detach().requires_grad_(need)
                for value, need in zip((text_MD, query_MA), needed[-2:], strict=True)
            ]
            everything = [*inputs, *own]
            asked = [value for value in everything if value.requires_grad]
            with torch.enable_grad():
                part_NM = ctx.function(*everything)
            found = dict(zip(map(id, asked), torch.autograd.grad(part_NM, asked, grad_NM[:, c]), strict=True))
            for total, value in zip(totals, inputs, strict=True):
                if total is not None:
                    total += found[id(value)]
            for side, value in zip(sides, own, strict=True):
                if value.requires_grad:
                    side.append(found[id(value)])
        return (None, None, *totals, *(torch.cat(side) if side else None for side in sides))


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
