"""The region head: pooled raw tokens, masked attention, keyed dropout, deterministic eval."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.noise import RowNoise
from zscmr_ray.models.regions import RegionHead, Selection, TokenScorer

WIDTH = 16


def make_head(**selection: object) -> RegionHead:
    torch.manual_seed(0)
    return RegionHead(WIDTH, num_heads=2, selection=Selection(num_noise_samples=32, **selection))


def noise(*rows: int) -> RowNoise:
    return RowNoise(0, 0, torch.tensor(rows))


def pooled_by(head: RegionHead, tokens: Tensor, lengths: Tensor, rows: RowNoise | None) -> Tensor:
    seen: list[Tensor] = []
    handle = head.project.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head(tokens, lengths, noise=rows, side="text")
    handle.remove()
    return seen[0].detach()


@pytest.mark.parametrize("training", [True, False])
def test_defect_01_pooling_divides_by_k(training: bool) -> None:
    """Equal tokens pool to that token, whatever is selected; divided by the ratio it would be k / ratio times it."""
    token = torch.randn(1, 1, WIDTH)
    tokens, lengths = token.expand(2, 30, WIDTH), torch.tensor([30, 11])
    head = make_head().train(training)
    torch.testing.assert_close(pooled_by(head, tokens, lengths, noise(0, 1)), token[0].expand(2, WIDTH))
    released = make_head(divisor="ratio").train(training)
    torch.testing.assert_close(pooled_by(released, tokens, lengths, noise(0, 1))[0], token[0, 0] * 3 / 0.1)


@pytest.mark.parametrize("training", [True, False])
def test_defect_02_short_texts_select_a_token(training: bool) -> None:
    tokens, lengths = torch.randn(2, 6, WIDTH), torch.tensor([6, 2])
    head = make_head().train(training)
    region, weights = head(tokens, lengths, noise=noise(0, 1), side="text")
    assert weights.sum(1).tolist() == pytest.approx([1, 1])
    assert region[0] @ region[1] < 0.999
    # Released: k = 0, nothing is pooled and every short text has the same embedding.
    region, weights = make_head(rounding="released").train(training)(
        tokens, lengths, noise=noise(0, 1), side="text"
    )
    assert weights.abs().sum() == 0
    torch.testing.assert_close(region[0], region[1])


def test_defect_04_eval_is_deterministic() -> None:
    tokens, lengths = torch.randn(3, 40, WIDTH), torch.tensor([40, 40, 25])
    for kind in ("hard", "soft"):
        head = make_head(eval_kind=kind).eval()
        first, again = (head(tokens, lengths, noise=None, side="image") for _ in range(2))
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert first[1].sum(1).tolist() == pytest.approx([4, 4, 3])
    released = make_head(eval_kind="released").eval()
    first, again = (released(tokens, lengths, noise=None, side="image") for _ in range(2))
    assert not torch.equal(first[0], again[0])


@pytest.mark.parametrize("eval_kind", ["hard", "soft"])
def test_eval_does_not_depend_on_the_batch(eval_kind: str) -> None:
    head = make_head(eval_kind=eval_kind).eval()
    tokens, lengths = torch.randn(3, 40, WIDTH), torch.tensor([40, 12, 25])
    together = head(tokens, lengths, noise=None, side="text")[0]
    for b, length in enumerate(lengths.tolist()):
        alone = head(tokens[b : b + 1, :length], lengths[b : b + 1], noise=None, side="text")[0]
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-4, atol=1e-5)


def test_training_noise_and_dropout_belong_to_the_row() -> None:
    head = make_head().train()
    tokens, lengths = torch.randn(3, 40, WIDTH), torch.tensor([40, 12, 25])
    together = head(tokens, lengths, noise=noise(7, 8, 9), side="text")[0]
    alone = head(tokens[1:2, :12], lengths[1:2], noise=noise(8), side="text")[0]
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)
    other_row = head(tokens[1:2, :12], lengths[1:2], noise=noise(5), side="text")[0]
    assert not torch.allclose(alone, other_row, atol=1e-4)


def test_scores_agree_with_torch_s_attention_and_a_linear_layer() -> None:
    torch.manual_seed(1)
    ours = TokenScorer(WIDTH, num_heads=4, dropout=0.0)
    theirs = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
    for bias in (ours.qkv.bias, ours.out.bias):
        nn.init.normal_(bias)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    tokens, lengths = torch.randn(2, 7, WIDTH), torch.tensor([7, 3])
    true = torch.arange(7) < lengths[:, None]
    context, _ = theirs(tokens, tokens, tokens, key_padding_mask=~true, need_weights=False)
    expected = torch.sigmoid(functional.linear(context, ours.score.weight.detach(), ours.score.bias)).squeeze(
        2
    )
    actual = ours(tokens, lengths, noise=None, site="a")
    torch.testing.assert_close(actual[true], expected[true], rtol=1e-4, atol=1e-5)
    grad = torch.randn(2, 7)[true]
    (actual[true] * grad).sum().backward()
    (expected[true] * grad).sum().backward()
    pairs = [
        (ours.qkv.weight, theirs.in_proj_weight),
        (ours.qkv.bias, theirs.in_proj_bias),
        (ours.out.weight, theirs.out_proj.weight),
        (ours.out.bias, theirs.out_proj.bias),
    ]
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_the_attention_feeds_the_scorer_only() -> None:
    """With the selection fixed (k = all tokens) no gradient can reach the attention: raw tokens are pooled."""
    head = make_head(ratio=1.0).train()
    region, _ = head(torch.randn(2, 5, WIDTH), torch.tensor([5, 5]), noise=noise(0, 1), side="image")
    region.sum().backward()
    assert head.scorer.qkv.weight.grad.abs().max() < 1e-6
    assert head.project[0].weight.grad.abs().max() > 0


def test_gradient_reaches_the_scorer_through_the_selection() -> None:
    head = make_head().train()
    region, _ = head(torch.randn(4, 20, WIDTH), torch.full((4,), 20), noise=noise(0, 1, 2, 3), side="image")
    region[:, 0].sum().backward()
    assert head.scorer.qkv.weight.grad.abs().max() > 0
    assert head.scorer.score.weight.grad.abs().max() > 0


def test_mean_selection_has_no_scorer() -> None:
    head = make_head(kind="mean")
    tokens, lengths = torch.randn(2, 6, WIDTH), torch.tensor([6, 2])
    torch.testing.assert_close(pooled_by(head, tokens, lengths, None)[1], tokens[1, :2].mean(0))
    assert {name.split(".")[0] for name, _ in head.named_parameters()} == {"project"}


def test_embeddings_are_unit_float32_also_from_bfloat16() -> None:
    head = make_head().bfloat16().train()
    region, weights = head(
        torch.randn(2, 12, WIDTH, dtype=torch.bfloat16), torch.tensor([12, 4]), noise=noise(0, 1), side="text"
    )
    assert region.dtype == weights.dtype == torch.float32
    assert region.norm(dim=1).tolist() == pytest.approx([1, 1])
    region.sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_training_without_noise_is_our_own_slip() -> None:
    with pytest.raises(AssertionError, match="noise"):
        make_head().train()(torch.randn(1, 4, WIDTH), torch.tensor([4]), noise=None, side="image")


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="num_heads"):
        RegionHead(WIDTH, num_heads=3)
