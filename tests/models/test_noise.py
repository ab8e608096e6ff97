"""Row-keyed noise: a row's draw depends on its key, never on who is beside it."""

from __future__ import annotations

import pytest
import torch

from zscmr_ray.models.noise import RowNoise, mix_64


def rows(*keys: int) -> torch.Tensor:
    return torch.tensor(keys, dtype=torch.int64)


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_a_row_draws_the_same_alone_and_in_any_batch(draw: str) -> None:
    batch = getattr(RowNoise(3, 7, rows(5, -1, 2**62, 9)), draw)("text.latent", 33)
    moved = getattr(RowNoise(3, 7, rows(9, 5)), draw)("text.latent", 33)
    alone = getattr(RowNoise(3, 7, rows(2**62)), draw)("text.latent", 33)
    assert torch.equal(moved, batch[[3, 0]])
    assert torch.equal(alone, batch[[2]])


@pytest.mark.parametrize(
    "other",
    [
        (RowNoise(1, 0, rows(0)), "a"),
        (RowNoise(0, 1, rows(0)), "a"),
        (RowNoise(0, 0, rows(1)), "a"),
        (RowNoise(0, 0, rows(0)), "b"),
    ],
)
def test_seed_step_row_and_site_each_change_the_noise(other: tuple[RowNoise, str]) -> None:
    noise, site = other
    first, second = RowNoise(0, 0, rows(0)).normal("a", 4096), noise.normal(site, 4096)
    correlation = (first * second).mean()
    assert abs(correlation) < 0.08  # 5 standard errors of 4096 independent products


def test_values_are_standard_normal_and_uniform() -> None:
    noise = RowNoise(0, 0, torch.arange(200))
    normal, uniform = noise.normal("a", 500), noise.uniform("a", 500)
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01
    # Neighbouring keys are as independent as any two rows.
    assert abs((normal[1:] * normal[:-1]).mean()) < 0.02


def test_constant_noise_is_shared_by_all_rows() -> None:
    values = RowNoise.constant(3).normal("a", 8)
    assert torch.equal(values[0], values[1])
    assert torch.equal(values, RowNoise.constant(3).normal("a", 8))


def test_attention_keep_does_not_depend_on_the_padded_length() -> None:
    alone = RowNoise(0, 0, rows(4)).attention_keep("a", [3], num_heads=2, num_tokens=3, drop=0.3)
    padded = RowNoise(0, 0, rows(8, 4)).attention_keep("a", [6, 3], num_heads=2, num_tokens=6, drop=0.3)
    assert torch.equal(padded[1:, :, :3, :3], alone)
    assert padded[1, :, 3:].abs().sum() == 0
    assert padded[1, :, :, 3:].abs().sum() == 0


def test_attention_keep_drops_the_given_share_and_rescales() -> None:
    keep = RowNoise(0, 0, rows(1)).attention_keep("a", [100], num_heads=4, num_tokens=100, drop=0.25)
    assert keep.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert keep.mean() == pytest.approx(1.0, abs=0.02)


def test_an_empty_batch_draws_nothing() -> None:
    assert RowNoise(0, 0, rows()).normal("a", 4).shape == (0, 4)


def test_mix_64_is_splitmix64() -> None:
    # First output of the reference generator started at 0.
    assert mix_64(0) == 0xE220A8397B1DCDAF
