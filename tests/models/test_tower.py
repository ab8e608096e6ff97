"""Two towers: pooling, noise that belongs to a row, losses by configuration, and the round trip."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from zscmr_ray.losses.contrast import info_nce
from zscmr_ray.losses.relations import Relations, make_relations
from zscmr_ray.models.base import SideOutput, VectorBlock, build_seeded
from zscmr_ray.models.build import build_model
from zscmr_ray.models.noise import RowNoise
from zscmr_ray.models.tower import TowerSettings, TwoTowers

SETTINGS = TowerSettings(image_channels=6, text_channels=5, width=8)
LENGTHS = torch.tensor([7, 3, 1, 9, 4])
NUM_ROWS = len(LENGTHS)
NOISY = {"feature_noise": 0.3, "dropout": 0.4}


def model(**changes: object) -> TwoTowers:
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return build_seeded(lambda: TwoTowers(settings), seed=0)


def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(NUM_ROWS, 4, 6, generator=generator), torch.randn(NUM_ROWS, 9, 5, generator=generator)


def encode(towers: TwoTowers, *, step: int = 0) -> tuple[SideOutput, SideOutput]:
    regions, tokens = features()
    noise = RowNoise(0, step, torch.arange(NUM_ROWS))
    return towers.encode_image(regions, noise=noise), towers.encode_text(tokens, LENGTHS, noise=noise)


def relations(names: str = "aabbc") -> Relations:
    return make_relations([(name,) for name in names])


@pytest.mark.parametrize("tower", ["linear", "mlp"])
def test_vectors_are_projected_means_of_true_tokens(tower: str) -> None:
    towers = model(tower=tower, **NOISY).eval()
    image, text = encode(towers)
    regions, tokens = features()
    pooled = torch.stack([row[:length].mean(0) for row, length in zip(tokens, LENGTHS, strict=True)])
    for output, side, expected in (
        (image, towers.image, regions.mean(1)),
        (text, towers.text, pooled),
    ):
        projected = side.project(expected)
        torch.testing.assert_close(
            towers.vectors(output), projected / projected.norm(dim=1, keepdim=True), atol=1e-6, rtol=1e-5
        )
        assert output.weights_BR is None
    assert towers.blocks == (VectorBlock("region", 0, 8),)
    assert not towers.scores_pairs


def test_padding_changes_nothing() -> None:
    towers, (_, tokens) = model(), features()
    garbage = tokens.clone()
    for b, length in enumerate(LENGTHS.tolist()):
        garbage[b, length:] = float("nan")
    assert torch.equal(*(towers.encode_text(t, LENGTHS).region_BD for t in (tokens, garbage)))


def test_noise_belongs_to_the_row_and_the_step() -> None:
    towers, (regions, _) = model(**NOISY), features()
    first, again, next_step = (encode(towers, step=step)[0].region_BD for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, next_step, atol=1e-3)
    rows = [3, 1]
    alone = towers.encode_image(regions[rows], noise=RowNoise(0, 0, torch.tensor(rows))).region_BD
    torch.testing.assert_close(alone, first[rows])
    with pytest.raises(AssertionError, match="training draws noise"):
        towers.encode_image(regions)


def test_dropout_and_noise_keep_the_mean() -> None:
    towers = model(**NOISY)
    pooled = torch.full((4000, 6), 2.0)
    noise = RowNoise(0, 0, torch.arange(4000))
    disturbed = towers.image._disturb(pooled, noise)
    assert disturbed.mean().item() == pytest.approx(2.0, abs=0.05)
    assert (disturbed == 0).float().mean().item() == pytest.approx(0.4, abs=0.01)
    assert (disturbed[disturbed != 0] * 0.6).std().item() == pytest.approx(0.6, abs=0.02)


def test_the_temperature_is_fixed_or_learned() -> None:
    fixed, learned = model(temperature=0.4), model(temperature=0.4, learned_temperature=True)
    learned.load_state_dict(fixed.state_dict(), strict=False)
    losses = [towers.loss(*encode(towers), relations()) for towers in (fixed, learned)]
    image, text = encode(fixed)
    expected = info_nce(image.region_BD @ text.region_BD.T / 0.4, relations())
    for parts in losses:
        assert parts["total"].item() == pytest.approx(expected.item(), rel=1e-5)
        assert parts["temperature"].item() == pytest.approx(0.4)
    losses[1]["total"].backward()
    assert learned.contrast.log_scale.grad.abs() > 0
    assert fixed.contrast.log_scale is None
    with torch.no_grad():
        learned.contrast.log_scale.fill_(99.0)
    assert learned.loss(*encode(learned), relations())["temperature"].item() == pytest.approx(0.01)


@pytest.mark.parametrize("same_class", ["negative", "ignored", "positive"])
@pytest.mark.parametrize("names", ["aabbc", "aaaaa"])
def test_every_reading_of_same_class_rows_trains_every_parameter(same_class: str, names: str) -> None:
    towers = model(tower="mlp", same_class=same_class, learned_temperature=True, **NOISY)
    towers.loss(*encode(towers), relations(names))["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in towers.parameters())


def test_the_architecture_rebuilds_the_model_and_bfloat16_trains() -> None:
    towers = model(tower="mlp", learned_temperature=True).eval()
    again = build_model(towers.architecture(), seed=5).eval()
    again.load_state_dict(towers.state_dict())
    for one, other in zip(encode(towers), encode(again), strict=True):
        assert torch.equal(towers.vectors(one), again.vectors(other))
    half = model().bfloat16()
    half.loss(*encode(half), relations())["total"].backward()
    assert all(p.grad.isfinite().all() for p in half.parameters())
