"""Perturbed top-k: differentiable selection of k tokens (Berthet et al., NeurIPS 2020; SCIENCE 2).

Forward   W = 1/n sum_n W_n,  W_n = k-hot(top-k(s + sigma z_n)),  z_n ~ N(0, I); the entries of W sum to k.
Backward  dL/ds = 1/((n - 1) sigma) sum_n (<dL/dW, W_n> - <dL/dW, W>) z_n:  the full Jacobian, centred by a control
variate. Since every W_n sums to k, taking <dL/dW, W> / k off each entry of dL/dW centres all n products at once.

What is kept for the backward pass is one bit per sample and token; the noise is drawn again from its row's seed.
What it is not: the scorer, nor the pooling that uses W (regions.py), nor the released operator (topk_released.py).

Measured on 2 cores (16 rows x 500 tokens, n = 1000, k = 50), and why the CPU kernel is as it is:
- the k-th largest by numpy's vectorised partition takes 21 ms, torch.topk 79, torch.kthvalue 143, argpartition 77;
- one bit per token (packbits, 1 MB) is smaller than int16 indices (1.6 MB at ratio .1), and made in 1 ms;
- drawing the noise twice costs 28 ms and keeps nothing; storing it would keep 32 MB here, 1 GB at 512 rows;
- counter-based noise from tensor operations was 6 to 100 times slower than torch's own generator, one per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zscmr_ray.models.noise import RowNoise

Rounding = Literal["ceil", "floor", "released"]
Estimator = Literal["centred", "diagonal"]
_Floats = npt.NDArray[np.float32]
_Bits = npt.NDArray[np.uint8]

# Entries of one row's noise chunk: what the CPU kernel works on (noise, a copy to partition, bits) stays near the
# L2 cache. Part of the noise's definition: another value is another stream.
_CHUNK_ENTRIES = 1 << 17
# Entries of noise that the torch kernel holds at a time: 256 MB in float32.
_GROUP_ENTRIES = 1 << 26


def num_selected(lengths_B: Tensor, *, ratio: float, rounding: Rounding = "ceil") -> Tensor:
    """Compute k for each row from its true length: max(1, ceil(ratio * length)), never more than the length.

    `rounding="floor"` gives the published k (4 of 49 regions at ratio 0.1) but at least 1; `"released"` is defect 2,
    k = 0 under 1 / ratio tokens. Returns int64 [B].
    """
    exact_B = lengths_B.to(torch.float64) * ratio
    # 0.1 * 30 is 3.0000000000000004 in floating point, whose ceiling would be 4. In ONNX the ratio is a float32: 0.1 * 10
    # is 1.5e-8 too much there.
    rounded_B = torch.ceil(exact_B - 1e-5) if rounding == "ceil" else torch.floor(exact_B + 1e-5)
    smallest = 0 if rounding == "released" else 1
    return torch.minimum(rounded_B.to(torch.int64).clamp_min(smallest), lengths_B.to(torch.int64))


def token_mask(lengths_B: Tensor, num_tokens: int) -> Tensor:
    """Mark the true tokens of each row: bool [B, L], True at positions under the row's length."""
    return torch.arange(num_tokens, device=lengths_B.device) < lengths_B[:, None]


def hard_topk(scores_BL: Tensor, *, lengths_B: Tensor, k_B: Tensor) -> Tensor:
    """Select exactly k tokens of each row, the highest scores; equal scores go to the earlier position.

    Returns the k-hot weights [B, L] float32, 0 in padding; no gradient (a step function has none).
    """
    mask_BL = token_mask(lengths_B, scores_BL.shape[1])
    masked_BL = scores_BL.detach().float().masked_fill(~mask_BL, -torch.inf)
    order_BL = torch.sort(masked_BL, dim=1, descending=True, stable=True).indices
    ranks_BL = torch.argsort(order_BL, dim=1)
    return ((ranks_BL < k_B[:, None]) & mask_BL).to(torch.float32)


def perturbed_topk(
    scores_BL: Tensor,
    *,
    lengths_B: Tensor,
    k_B: Tensor,
    noise: RowNoise,
    site: str,
    num_samples: int = 1000,
    sigma: float = 0.05,
    estimator: Estimator = "centred",
) -> Tensor:
    """Select k tokens of each row softly: the mean of `num_samples` k-hot vectors under Gaussian noise of std `sigma`.

    `scores_BL` may be of any float type (the operator works in float32); positions from the row's length on are
    padding: never selected, gradient 0. `k_B` is int64 [B] with 0 <= k <= length. A row's weights depend on its own
    scores, length, k and key in `noise` only. Returns W [B, L] float32, each row summing to its k.
    `estimator="diagonal"` is the released backward pass (defect 5).
    """
    assert scores_BL.shape[0] == len(noise), f"{scores_BL.shape[0]} rows of scores, noise for {len(noise)}"
    assert num_samples >= 2, "the centred estimator divides by num_samples - 1"
    weights_BL: Tensor = _PerturbedTopK.apply(  # type: ignore[no-untyped-call]
        scores_BL.float(), lengths_B.tolist(), k_B.tolist(), noise, site, num_samples, sigma, estimator
    )
    return weights_BL


class _PerturbedTopK(torch.autograd.Function):
    """The operator; on CPU row by row in numpy (see the module), elsewhere batched in torch."""

    @staticmethod
    def forward(
        ctx: Any,
        scores_BL: Tensor,
        lengths: list[int],
        ks: list[int],
        noise: RowNoise,
        site: str,
        num_samples: int,
        sigma: float,
        estimator: Estimator,
    ) -> Tensor:
        kernel = _NumpyKernel if scores_BL.device.type == "cpu" else _TorchKernel
        ctx.kernel = kernel(lengths, ks, noise, site, num_samples, sigma)
        ctx.estimator = estimator
        weights_BL, kept = ctx.kernel.select(scores_BL.detach())
        ctx.save_for_backward(weights_BL, kept)
        return weights_BL

    @staticmethod
    def backward(ctx: Any, grad_BL: Tensor) -> tuple[Tensor | None, ...]:
        weights_BL, kept = ctx.saved_tensors
        kernel, n = ctx.kernel, ctx.kernel.num_samples
        if ctx.estimator == "diagonal":
            sums_BL = kernel.own_sums(kept, weights_BL.shape[1], weights_BL.device)
            return (grad_BL * sums_BL / (n * kernel.sigma), *[None] * 7)
        k_B1 = torch.tensor(kernel.ks, device=grad_BL.device).clamp_min(1)[:, None]
        centred_BL = grad_BL.float() - (grad_BL * weights_BL).sum(1, keepdim=True) / k_B1
        return (kernel.weighted_sums(kept, centred_BL) / ((n - 1) * kernel.sigma), *[None] * 7)


class _Kernel:
    """What both kernels know of a call, and how many samples they take at a time."""

    def __init__(
        self, lengths: list[int], ks: list[int], noise: RowNoise, site: str, num_samples: int, sigma: float
    ) -> None:
        assert all(0 <= k <= length for k, length in zip(ks, lengths, strict=True)), (ks, lengths)
        self.lengths, self.ks, self.noise, self.site = lengths, ks, noise, site
        self.num_samples, self.sigma = num_samples, sigma

    def empty_chunks(self, length: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """Yield uninitialised [chunk, length] tensors that make up one row's n samples.

        The cuts depend on the row's own length only: torch's generator draws other values in other portions.
        """
        size = max(1, min(self.num_samples, _CHUNK_ENTRIES // length))
        for start in range(0, self.num_samples, size):
            yield torch.empty(min(size, self.num_samples - start), length, device=device)


class _NumpyKernel(_Kernel):
    """One row at a time over its true length only: padding costs nothing, and no thread waits for another."""

    def select(self, scores_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return W [B, L] and the selected bits of all rows, uint8, concatenated."""
        weights_BL = torch.zeros_like(scores_BL)
        scores, out = scores_BL.numpy(), weights_BL.numpy()
        kept = []
        for b, generator in enumerate(self.noise.generators(self.site)):
            length, k = self.lengths[b], self.ks[b]
            counts_L = np.zeros(length, np.int64)
            for noise_SL in self.empty_chunks(length) if k else ():
                noisy_SL = noise_SL.normal_(generator=generator).numpy()
                noisy_SL *= np.float32(self.sigma)
                noisy_SL += scores[b, :length]
                chosen_SL = _k_hot(noisy_SL, k)
                counts_L += chosen_SL.sum(axis=0)
                kept.append(np.packbits(chosen_SL))
            out[b, :length] = counts_L / self.num_samples
            if not np.isfinite(scores[b, :length]).all():
                out[b, :length] = (
                    np.nan
                )  # a diverged row must reach the loss, not vanish into "selects nothing"
        return weights_BL, torch.from_numpy(np.concatenate(kept) if kept else np.zeros(0, np.uint8))

    def weighted_sums(self, kept: Tensor, weights_BL: Tensor) -> Tensor:
        """Compute sum_n <w, W_n> z_n for each row, [B, L]."""
        sums_BL = torch.zeros_like(weights_BL)
        weights, out = weights_BL.contiguous().numpy(), sums_BL.numpy()
        # OpenBLAS can raise the invalid flag on finite operands and results (numpy#24067), a warning once in thousands of
        # steps. A true NaN in the gradient goes through to the weights, and the next step's loss is refused.
        with np.errstate(invalid="ignore"):
            for b, length, chosen_SL, noise_SL in self._replay(kept):
                products_S = chosen_SL.astype(np.float32) @ weights[b, :length]
                out[b, :length] += products_S @ noise_SL
        return sums_BL

    def own_sums(self, kept: Tensor, num_tokens: int, device: torch.device) -> Tensor:
        """Compute sum_n W_nj z_nj, the diagonal that the released backward pass keeps, [B, L]."""
        sums_BL = torch.zeros(len(self.lengths), num_tokens, device=device)
        for b, length, chosen_SL, noise_SL in self._replay(kept):
            sums_BL.numpy()[b, :length] += (chosen_SL * noise_SL).sum(axis=0)
        return sums_BL

    def _replay(self, kept: Tensor) -> Iterator[tuple[int, int, _Bits, _Floats]]:
        bits, start = kept.numpy(), 0
        for b, generator in enumerate(self.noise.generators(self.site)):
            length = self.lengths[b]
            for chunk_SL in self.empty_chunks(length) if self.ks[b] else ():
                noise_SL = chunk_SL.normal_(generator=generator).numpy()
                stop = start + (noise_SL.size + 7) // 8
                chosen_SL = np.unpackbits(bits[start:stop], count=noise_SL.size).reshape(noise_SL.shape)
                start = stop
                yield b, length, chosen_SL, noise_SL


def _k_hot(noisy_SL: _Floats, k: int) -> npt.NDArray[np.bool_]:
    """Mark the k largest of each sample; where the k-th value is tied (1 sample in 10^4 in float32) the earlier win."""
    num_samples, length = noisy_SL.shape
    threshold_S1 = np.partition(noisy_SL, length - k, axis=1)[:, length - k, None]
    chosen_SL = noisy_SL >= threshold_S1
    if np.count_nonzero(chosen_SL) != num_samples * k:
        for i in np.flatnonzero(chosen_SL.sum(axis=1) > k):
            ties = np.flatnonzero(noisy_SL[i] == threshold_S1[i])
            surplus = int(chosen_SL[i].sum()) - k
            chosen_SL[i, ties[len(ties) - surplus :]] = False
    return chosen_SL


class _TorchKernel(_Kernel):
    """Many rows at once, some at a time: keeps the selected indices [B, n, k] as int16 (int32 over 32,767 tokens).

    Not run on a GPU yet; tests hold it against the numpy kernel on the CPU, where both draw the same noise.
    """

    def select(self, scores_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return W [B, L] and the selected indices [B, n, max k]; entries from a row's own k on mean nothing."""
        num_rows, num_tokens = scores_BL.shape
        mask_BL = token_mask(torch.tensor(self.lengths, device=scores_BL.device), num_tokens)
        # -inf before the noise: padding can never be selected, whatever is drawn for it.
        masked_BL = scores_BL.masked_fill(~mask_BL, -torch.inf)
        kept_BSK = torch.empty(
            num_rows,
            self.num_samples,
            max([0, *self.ks]),
            device=scores_BL.device,
            dtype=torch.int16 if num_tokens <= 32767 else torch.int32,
        )
        weights_BL = torch.zeros_like(scores_BL)
        for rows, noise_BSL, chosen_BSK in self._groups(num_tokens, scores_BL.device):
            noisy_BSL = noise_BSL.mul_(self.sigma).add_(masked_BL[rows, None])
            # Sorted, because a row with a smaller k keeps a prefix.
            indices_BSK = torch.topk(noisy_BSL, kept_BSK.shape[2], dim=2).indices
            weights_BL[rows] = _scatter(indices_BSK, chosen_BSK, num_tokens) / self.num_samples
            kept_BSK[rows] = indices_BSK.to(kept_BSK.dtype)
        finite_B1 = (torch.isfinite(scores_BL) | ~mask_BL).all(dim=1, keepdim=True)
        return weights_BL.masked_fill(~finite_B1 & mask_BL, torch.nan), kept_BSK

    def weighted_sums(self, kept: Tensor, weights_BL: Tensor) -> Tensor:
        """Compute sum_n <w, W_n> z_n for each row, [B, L]."""
        sums_BL = torch.zeros_like(weights_BL)
        for rows, noise_BSL, chosen_BSK in self._groups(weights_BL.shape[1], weights_BL.device):
            indices_BSK = kept[rows].long()
            picked_BSK = weights_BL[rows].gather(1, indices_BSK.flatten(1)).view_as(indices_BSK)
            products_BS = (picked_BSK * chosen_BSK).sum(dim=2)
            sums_BL[rows] = torch.einsum("bs,bsl->bl", products_BS, noise_BSL)
        return sums_BL

    def own_sums(self, kept: Tensor, num_tokens: int, device: torch.device) -> Tensor:
        """Compute sum_n W_nj z_nj, the diagonal that the released backward pass keeps, [B, L]."""
        sums_BL = torch.zeros(len(self.lengths), num_tokens, device=device)
        for rows, noise_BSL, chosen_BSK in self._groups(num_tokens, device):
            indices_BSK = kept[rows].long()
            sums_BL[rows] = _scatter(indices_BSK, noise_BSL.gather(2, indices_BSK) * chosen_BSK, num_tokens)
        return sums_BL

    def _groups(self, num_tokens: int, device: torch.device) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield (rows, their noise [b, n, L] with 0 in padding, which of the max k picks count [b, 1, K])."""
        size = max(1, _GROUP_ENTRIES // (self.num_samples * num_tokens))
        generators = self.noise.generators(self.site, device=device)
        ranks_K = torch.arange(max([0, *self.ks]), device=device)
        for start in range(0, len(generators), size):
            rows = slice(start, start + size)
            noise_BSL = torch.zeros(len(generators[rows]), self.num_samples, num_tokens, device=device)
            for out_SL, generator, length in zip(
                noise_BSL, generators[rows], self.lengths[rows], strict=True
            ):
                chunks = [c.normal_(generator=generator) for c in self.empty_chunks(length, device)]
                out_SL[:, :length] = torch.cat(chunks)
            ks_B11 = torch.tensor(self.ks[rows], device=device)[:, None, None]
            yield rows, noise_BSL, ranks_K < ks_B11


def _scatter(indices_BSK: Tensor, values_BSK: Tensor, num_tokens: int) -> Tensor:
    """Add up values by the token they belong to, over all samples: float32 [B, L]."""
    zeros_BL = torch.zeros(indices_BSK.shape[0], num_tokens, device=indices_BSK.device)
    values_BSK = values_BSK.expand_as(indices_BSK).to(zeros_BL.dtype)
    return zeros_BL.scatter_add_(1, indices_BSK.flatten(1), values_BSK.flatten(1))
