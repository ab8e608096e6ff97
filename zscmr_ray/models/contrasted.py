"""Pairs of small towers trained with noise, as instances and as classes: the part `contrasted` of `best` (best.py).

    image = [unit(f_m(x~ / s_x))]_m / sqrt(M),  text the same of g_m(y~ / s_y),  f, g: Linear -> LayerNorm -> GELU -> Linear
    loss  = (SupCon + InfoNCE) / 2 of cosines / t,  Gaussian noise on the inputs, in units of the row's root mean square

The M pairs differ in their seed alone and are trained one after the other: an inner product is the mean of their cosines.

x~ and y~ are centred on the training rows and s is their mean standard deviation. SupCon takes the other rows of the class
for positives, InfoNCE each row's own pair alone: what tells classes apart, and what tells items. A high temperature, noise
and few epochs, because long training on seen classes costs unseen ones.

What it is: a fit of seconds on pooled features, by its seed, inside `Best.fit`. What it is not: a recipe (`tower.py` with
engine/run.py is), resumable, or distributed.

Legend: B batch, F image channels, D text channels, M pairs, K width of all of them, N training pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zscmr_ray.losses.contrast import info_nce
from zscmr_ray.losses.relations import Relations
from zscmr_ray.models.alignment_statistics import PairRows

MIN_BATCH = 2


@dataclass(frozen=True, slots=True)
class ContrastedSettings:
    """Every hyper-parameter; chosen on pseudo-unseen classes (docs/science.md)."""

    image_channels: int
    text_channels: int
    width: int = 256
    num_pairs: int = 3
    temperature: float = 0.4
    noise: float = 0.5
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 10
    batch_rows: int = 128
    seed: int = 0


class Contrasted(nn.Module):
    """The pairs of towers, and the scales of what they read; `fit` it or load it."""

    def __init__(self, settings: ContrastedSettings) -> None:
        super().__init__()
        self.settings = settings
        self.image_nets, self.text_nets = (
            nn.ModuleList([_net(channels, settings.width) for _ in range(settings.num_pairs)])
            for channels in (settings.image_channels, settings.text_channels)
        )
        self.scales = nn.Parameter(torch.ones(2))
        self.requires_grad_(False)

    def fit(self, rows: PairRows, image_NF: Tensor, text_ND: Tensor, *, epochs: int) -> None:
        """Train on centred features of training pairs [N, F], [N, D] from the initial weights of each pair's seed.

        `epochs` passes over the rows.
        """
        self.scales.data = torch.stack([side.std(0).mean().clamp_min(1e-12) for side in (image_NF, text_ND)])
        sides = [side_NX / scale for side_NX, scale in zip((image_NF, text_ND), self.scales, strict=True)]
        class_N = torch.from_numpy(rows.class_N)
        for number, pair in enumerate(zip(self.image_nets, self.text_nets, strict=True)):
            seed = self.settings.seed + number
            _fit_pair(nn.ModuleList(pair), sides, class_N, self.settings, epochs=epochs, seed=seed)

    def image(self, centred_BF: Tensor) -> Tensor:
        """Return unit vectors [B, K] of centred images."""
        return _joined(self.image_nets, centred_BF / self.scales[0])

    def text(self, centred_BD: Tensor) -> Tensor:
        """Return unit vectors [B, K] of centred texts."""
        return _joined(self.text_nets, centred_BD / self.scales[1])


def _fit_pair(
    nets: nn.ModuleList,
    sides: Sequence[Tensor],
    class_N: Tensor,
    settings: ContrastedSettings,
    *,
    epochs: int,
    seed: int,
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in nets.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()
    generator = torch.Generator().manual_seed(seed)
    nets.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        nets.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    batches = list(_batches(len(class_N), settings.batch_rows, generator, epochs=epochs))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / settings.warmup_steps)
            * (0.5 + 0.5 * float(np.cos(np.pi * step / max(1, len(batches)))))
        ),
    )
    for batch_B in batches:
        image_BK, text_BK = (
            net(_noisy(side_NX[batch_B], settings.noise, generator))
            for net, side_NX in zip(nets, sides, strict=True)
        )
        logits_BB = _unit(image_BK) @ _unit(text_BK).T / settings.temperature
        optimizer.zero_grad(set_to_none=True)
        contrast(logits_BB, class_N[batch_B]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    nets.requires_grad_(False)


def _joined(nets: nn.ModuleList, rows_BX: Tensor) -> Tensor:
    return torch.cat([_unit(net(rows_BX)) for net in nets], dim=1) / len(nets) ** 0.5


def _net(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width))


def _batches(num: int, batch_rows: int, generator: torch.Generator, *, epochs: int) -> Iterator[Tensor]:
    """The rows of every step; a rest too small for a contrast is left out."""
    for _ in range(epochs):
        for rows_B in torch.split(torch.randperm(num, generator=generator), batch_rows):
            if len(rows_B) >= MIN_BATCH:
                yield rows_B


def _noisy(rows_BX: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    scale_B1 = rows_BX.square().mean(dim=1, keepdim=True).sqrt() * noise
    return rows_BX + scale_B1 * torch.randn(rows_BX.shape, generator=generator)


def contrast(logits_BB: Tensor, class_B: Tensor) -> Tensor:
    """Return half SupCon, half InfoNCE of cosines over the temperature [B, B] and class numbers [B]."""
    own_BB = torch.eye(len(class_B), dtype=torch.bool)
    same_BB = (class_B[:, None] == class_B) & ~own_BB
    relations = Relations(negative_BB=~same_BB & ~own_BB, weak_BB=same_BB, positive_BB=own_BB)
    return 0.5 * (info_nce(logits_BB, relations, same_class="positive") + info_nce(logits_BB, relations))


def _unit(rows_BX: Tensor) -> Tensor:
    return functional.normalize(rows_BX, dim=1)
