"""Trunks: padding, whatever lies in it, changes no output and no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.trunks import ImageTrunk, TextTrunk, masked_mean

CHANNELS, WIDTH = 6, 8


def text_trunk(kind: str) -> TextTrunk:
    torch.manual_seed(0)
    return TextTrunk(CHANNELS, WIDTH, kind=kind)


@pytest.mark.parametrize("kind", ["bigru", "linear"])
@pytest.mark.parametrize("garbage", [7.0, torch.inf, torch.nan])
def test_defect_03_a_padded_row_equals_the_row_alone(kind: str, garbage: float) -> None:
    trunk = text_trunk(kind)
    batch = torch.randn(3, 9, CHANNELS)
    lengths = torch.tensor([9, 4, 1])
    alone = trunk(batch[1:2, :4], lengths[1:2])
    for b, length in enumerate(lengths.tolist()):
        batch[b, length:] = garbage
    states = trunk(batch, lengths)
    torch.testing.assert_close(states[1:2, :4], alone, rtol=1e-5, atol=1e-6)
    assert states[1, 4:].abs().sum() == 0
    states.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in trunk.parameters())


def test_the_bigru_is_torch_s_own_on_a_single_row() -> None:
    trunk = text_trunk("bigru")
    tokens = torch.randn(1, 5, CHANNELS)
    assert trunk.gru is not None
    expected = trunk.project(trunk.gru(tokens)[0])
    torch.testing.assert_close(trunk(tokens, torch.tensor([5])), expected)
    assert trunk.gru.hidden_size * 2 == WIDTH


def test_the_image_trunk_is_linear_and_layer_norm() -> None:
    trunk = ImageTrunk(CHANNELS, WIDTH)
    regions = torch.randn(2, 4, CHANNELS)
    states = trunk(regions, torch.tensor([4, 4]))
    linear, norm = trunk.project
    assert isinstance(linear, nn.Linear)
    torch.testing.assert_close(states, norm(linear(regions)))


def test_no_image_trunk_passes_the_regions_through() -> None:
    trunk = ImageTrunk(WIDTH, WIDTH, kind="none")
    regions = torch.randn(2, 4, WIDTH)
    assert torch.equal(trunk(regions, torch.tensor([4, 4])), regions)
    assert not list(trunk.parameters())


def test_wrong_widths_are_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match="remedy"):
        ImageTrunk(CHANNELS, WIDTH, kind="none")
    with pytest.raises(ConfigError, match="even"):
        TextTrunk(CHANNELS, 7)


def test_bfloat16_runs_and_stays_finite() -> None:
    trunk = text_trunk("bigru").bfloat16()
    states = trunk(torch.randn(2, 5, CHANNELS, dtype=torch.bfloat16), torch.tensor([5, 2]))
    assert states.dtype == torch.bfloat16
    assert states.isfinite().all()


def test_masked_mean_counts_true_tokens_only() -> None:
    tokens = torch.tensor([[[1.0], [3.0], [torch.nan]], [[5.0], [7.0], [9.0]]])
    assert masked_mean(tokens, torch.tensor([2, 3])).tolist() == [[2.0], [7.0]]
