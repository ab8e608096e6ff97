"""The label-distribution head of FGAN (SCIENCE 2): a VAE over the mean token, and logits over the teacher's classes.

    x = mean of the true tokens;  mu, logvar = encoder(x);  z = mu + exp(logvar / 2) eps;  logits = Linear(mu)
    reconstruction = mean_d (decoder(z)_d - x_d)^2;  kl = -1/2 sum_latent (1 + logvar - mu^2 - exp(logvar))

Encoder and decoder are Linear -> LayerNorm -> LeakyReLU -> Linear. One head per modality. The KL is summed over the
latent and averaged over rows, the usual reading (ours: the paper gives the weight 1e-4 only). Not the loss (losses/fgla.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zscmr_ray.models.noise import RowNoise
from zscmr_ray.models.trunks import masked_mean


@dataclass(frozen=True)  # no slots: ZeRO 3 hooks read a module's output with vars()
class LabelOutput:
    """Logits [B, C] float32, and in training the two VAE terms per row [B] float32."""

    logits_BC: Tensor
    reconstruction_B: Tensor | None
    kl_B: Tensor | None


class LabelHead(nn.Module):
    """Predict a distribution over the teacher's classes for each row of one modality."""

    def __init__(
        self, width: int, *, latent: int = 512, num_classes: int = 1000, with_vae: bool = True
    ) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = _two_layers(width, latent, 2 * latent if with_vae else latent)
        self.decoder = _two_layers(latent, latent, width) if with_vae else None
        self.classify = nn.Linear(latent, num_classes)

    def forward(
        self, tokens_BLD: Tensor, lengths_B: Tensor, *, noise: RowNoise | None, side: str, detach_target: bool
    ) -> LabelOutput:
        """Compute logits from mu, and in training the VAE terms; `noise` is needed in training, ignored in eval.

        `detach_target` keeps the reconstruction's gradient out of its own target, the mean token (defect 11).
        """
        mean_BD = masked_mean(tokens_BLD, lengths_B)
        encoded_BE = self.encoder(mean_BD.to(tokens_BLD.dtype))
        mu_BE = encoded_BE[:, : self.latent]
        logits_BC = self.classify(mu_BE).float()
        if self.decoder is None or not self.training:
            return LabelOutput(logits_BC, None, None)
        assert noise is not None, "training draws noise: pass noise=RowNoise(seed, step, rows)"
        mu_BE, logvar_BE = mu_BE.float(), encoded_BE[:, self.latent :].float()
        epsilon_BE = noise.normal(f"{side}.latent", self.latent, device=mu_BE.device)
        sample_BE = mu_BE + torch.exp(0.5 * logvar_BE) * epsilon_BE
        target_BD = mean_BD.detach() if detach_target else mean_BD
        decoded_BD = self.decoder(sample_BE.to(tokens_BLD.dtype)).float()
        return LabelOutput(
            logits_BC,
            reconstruction_B=(decoded_BD - target_BD).square().mean(dim=1),
            kl_B=-0.5 * (1 + logvar_BE - mu_BE.square() - logvar_BE.exp()).sum(dim=1),
        )


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(), nn.Linear(hidden, outputs)
    )
