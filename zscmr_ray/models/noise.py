"""Random numbers that belong to a row, not to a batch: dropout, VAE and top-k noise keyed by (seed, step, row, site).

A row draws the same noise alone, in any batch, in any order and on any rank, so that training does not depend on the
number of workers and a resumed step repeats itself (DESIGN 3). It is not a source of initial weights or of sample order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_MASK_64 = (1 << 64) - 1


def mix_64(value: int) -> int:
    """Scramble a 64-bit integer (the finaliser of splitmix64, Steele et al. 2014); returns 0 <= x < 2**64."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


@dataclass(frozen=True)
class RowNoise:
    """Noise of one training step: `seed`, global `step`, and a stable int64 key for each row of the batch.

    `rows_B` holds keys that name the rows for good (their number in the training set, not in the batch).
    The same key, seed, step, site and shape give the same values on the same kind of device; CPU and CUDA differ.
    """

    seed: int
    step: int
    rows_B: Tensor

    @classmethod
    def constant(cls, num_rows: int) -> RowNoise:
        """Make noise that every row shares and no step changes, for deterministic expectations in eval."""
        return cls(0, 0, torch.zeros(num_rows, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def _rows(self) -> list[int]:
        # Read once: on CUDA this is the only synchronisation of the whole step.
        return [int(row) for row in self.rows_B.tolist()]

    def seeds(self, site: str) -> list[int]:
        """Derive one 32-bit generator seed per row for a site such as "image.latent".

        32 bits because torch's CPU generator (mt19937) reads no more of its seed. Two rows of a step share noise
        with probability 2**-32, which is harmless: noise has to be independent, not unique.
        """
        digest = hashlib.blake2b(f"{self.seed}/{self.step}/{site}".encode(), digest_size=8).digest()
        base = int.from_bytes(digest, "little")
        return [mix_64(base ^ mix_64(row & _MASK_64)) >> 32 for row in self._rows]

    def generators(self, site: str, *, device: torch.device | str = "cpu") -> list[torch.Generator]:
        """Make one generator per row, for callers whose rows draw different amounts (true lengths)."""
        return [torch.Generator(device=device).manual_seed(seed) for seed in self.seeds(site)]

    def normal(self, site: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw standard normal values [B, *shape], float32."""
        out = torch.empty(len(self), *shape, device=device)
        for row, generator in zip(out, self.generators(site, device=device), strict=True):
            row.normal_(generator=generator)
        return out

    def uniform(self, site: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Draw values uniform in [0, 1), [B, *shape], float32."""
        out = torch.empty(len(self), *shape, device=device)
        for row, generator in zip(out, self.generators(site, device=device), strict=True):
            row.uniform_(generator=generator)
        return out

    def attention_keep(
        self,
        site: str,
        lengths: Sequence[int],
        *,
        num_heads: int,
        num_tokens: int,
        drop: float,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw the inverted-dropout factors of attention weights: [B, num_heads, L, L], each 0 or 1 / (1 - drop).

        Each row draws [num_heads, length, length] values of its own true length, never of the padded one: what it
        gets must not depend on the longest row beside it. Padded entries are 0.
        """
        keep_BHLL = torch.zeros(len(self), num_heads, num_tokens, num_tokens, device=device)
        scale = 1.0 / (1.0 - drop)
        for b, generator in enumerate(self.generators(site, device=device)):
            true = int(lengths[b])
            uniform_HLL = torch.empty(num_heads, true, true, device=device).uniform_(generator=generator)
            keep_BHLL[b, :, :true, :true] = (uniform_HLL >= drop).to(torch.float32).mul_(scale)
        return keep_BHLL
