"""Two small towers trained with noise, once as instances and once as classes: the part `contrasted` of `best` (best.py).

    image = unit(f(x~ / s_x)),  text = unit(g(y~ / s_y)),  f, g: Linear -> LayerNorm -> GELU -> Linear
    loss  = (SupCon + InfoNCE) / 2 of cosines / t,  Gaussian noise on the inputs, in units of the row's root mean square

x~ and y~ are centred on the training rows and s is their mean standard deviation. SupCon takes the other rows of the class
for positives, InfoNCE each row's own pair alone: what tells classes apart, and what tells items. A high temperature, noise
and few epochs, because long training on seen classes costs unseen ones.

What it is: a fit of seconds on pooled features, by its seed, inside `Best.fit`. What it is not: a recipe (`tower.py` with
engine/run.py is), resumable, or distributed.

Legend: B batch, F image channels, D text channels, K width, N training pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    temperature: float = 0.4
    noise: float = 0.5
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 10
    epochs: int = 10
    batch_rows: int = 128
    seed: int = 0


class Contrasted(nn.Module):
    """Both towers, and the means and scales of what they read; `fit` it or load it."""

    def __init__(self, settings: ContrastedSettings) -> None:
        super().__init__()
        self.settings = settings
        self.image_net = _net(settings.image_channels, settings.width)
        self.text_net = _net(settings.text_channels, settings.width)
        self.scales = nn.Parameter(torch.ones(2))
        self.requires_grad_(False)

    def fit(self, rows: PairRows, image_NF: Tensor, text_ND: Tensor) -> None:
        """Train on centred features of training pairs [N, F], [N, D] from the seed's initial weights."""
        settings, num = self.settings, len(image_NF)
        self.scales.data = torch.stack([side.std(0).mean().clamp_min(1e-12) for side in (image_NF, text_ND)])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.LayerNorm):
                    module.reset_parameters()
        generator = torch.Generator().manual_seed(settings.seed)
        nets = nn.ModuleList([self.image_net, self.text_net]).requires_grad_(True)
        optimizer = torch.optim.AdamW(
            nets.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        batches = list(_batches(num, settings, generator))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: (
                min(1.0, (step + 1) / settings.warmup_steps)
                * (0.5 + 0.5 * float(np.cos(np.pi * step / max(1, len(batches)))))
            ),
        )
        class_N = torch.from_numpy(rows.class_N)
        for batch_B in batches:
            image_BK, text_BK = (
                net(_noisy(side_NX[batch_B] / scale, settings.noise, generator))
                for net, side_NX, scale in zip(nets, (image_NF, text_ND), self.scales, strict=True)
            )
            logits_BB = _unit(image_BK) @ _unit(text_BK).T / settings.temperature
            optimizer.zero_grad(set_to_none=True)
            contrast(logits_BB, class_N[batch_B]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        nets.requires_grad_(False)

    def image(self, centred_BF: Tensor) -> Tensor:
        """Return unit vectors [B, K] of centred images."""
        return _unit(self.image_net(centred_BF / self.scales[0]))

    def text(self, centred_BD: Tensor) -> Tensor:
        """Return unit vectors [B, K] of centred texts."""
        return _unit(self.text_net(centred_BD / self.scales[1]))


def _net(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width))


def _batches(num: int, settings: ContrastedSettings, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows of every step; a rest too small for a contrast is left out."""
    for _ in range(settings.epochs):
        for rows_B in torch.split(torch.randperm(num, generator=generator), settings.batch_rows):
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
