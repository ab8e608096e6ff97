"""The label head: VAE terms against the equations, logits from mu, targets without gradient."""

from __future__ import annotations

import math

import pytest
import torch

from zscmr_ray.models.label_distribution import LabelHead, LabelOutput
from zscmr_ray.models.noise import RowNoise

WIDTH, LATENT, CLASSES = 6, 4, 5


def make_head(**options: object) -> LabelHead:
    torch.manual_seed(0)
    return LabelHead(WIDTH, latent=LATENT, num_classes=CLASSES, **options)


def run(head: LabelHead, tokens: torch.Tensor, lengths: list[int], **options: object) -> LabelOutput:
    noise = RowNoise(0, 0, torch.arange(len(lengths)))
    settings = {"noise": noise, "side": "text", "detach_target": True} | options
    return head(tokens, torch.tensor(lengths), **settings)


def test_vae_terms_agree_with_loops() -> None:
    head = make_head()
    tokens, lengths = torch.randn(3, 4, WIDTH), [4, 2, 1]
    output = run(head, tokens, lengths)
    epsilon = RowNoise(0, 0, torch.arange(3)).normal("text.latent", LATENT)
    assert output.reconstruction_B is not None
    assert output.kl_B is not None
    for b, length in enumerate(lengths):
        mean = tokens[b, :length].mean(0)
        encoded = head.encoder(mean)
        mu, logvar = encoded[:LATENT].tolist(), encoded[LATENT:].tolist()
        z = torch.tensor(
            [m + math.exp(v / 2) * float(e) for m, v, e in zip(mu, logvar, epsilon[b], strict=True)]
        )
        decoded = head.decoder(z).detach()
        mse = sum((float(x) - float(y)) ** 2 for x, y in zip(decoded, mean, strict=True)) / WIDTH
        kl = sum(-0.5 * (1 + v - m * m - math.exp(v)) for m, v in zip(mu, logvar, strict=True))
        assert output.reconstruction_B[b].item() == pytest.approx(mse, rel=1e-4)
        assert output.kl_B[b].item() == pytest.approx(kl, rel=1e-4)
        torch.testing.assert_close(output.logits_BC[b], head.classify(torch.tensor(mu)))


def test_eval_needs_no_noise_and_has_no_vae_terms() -> None:
    head = make_head().eval()
    tokens = torch.randn(2, 3, WIDTH)
    output = run(head, tokens, [3, 3], noise=None)
    assert output.reconstruction_B is None
    assert output.kl_B is None
    torch.testing.assert_close(output.logits_BC, run(head.train(), tokens, [3, 3]).logits_BC)


def test_defect_03_padding_does_not_enter_the_mean() -> None:
    head = make_head().eval()
    tokens = torch.randn(1, 5, WIDTH)
    tokens[0, 2:] = torch.nan
    alone = run(head, tokens[:, :2], [2], noise=None)
    torch.testing.assert_close(run(head, tokens, [2], noise=None).logits_BC, alone.logits_BC)


@pytest.mark.parametrize("detach_target", [True, False])
def test_defect_11_the_reconstruction_target_is_detached(detach_target: bool) -> None:
    head = make_head()
    torch.nn.init.zeros_(head.decoder[3].weight)  # nothing flows through the decoder: only the target is left
    tokens = torch.randn(2, 3, WIDTH, requires_grad=True)
    run(head, tokens, [3, 3], detach_target=detach_target).reconstruction_B.sum().backward()
    moved = tokens.grad is not None and bool(tokens.grad.abs().sum() > 0)
    assert moved is not detach_target


def test_without_vae_there_is_no_decoder_and_no_variance() -> None:
    head = make_head(with_vae=False)
    output = run(head, torch.randn(2, 3, WIDTH), [3, 1], noise=None)
    assert output.kl_B is None
    assert head.decoder is None
    assert head.encoder[3].out_features == LATENT


def test_bfloat16_terms_are_float32() -> None:
    output = run(make_head().bfloat16(), torch.randn(2, 3, WIDTH, dtype=torch.bfloat16), [3, 1])
    assert output.logits_BC.dtype == torch.float32
    assert output.kl_B is not None
    assert output.kl_B.dtype == torch.float32
    assert output.kl_B.isfinite().all()
