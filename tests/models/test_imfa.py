"""IMFA and its baselines: equations as loops, no leak, chunks equal to the dense form, gradients, distillation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from zscmr_ray.errors import ConfigError
from zscmr_ray.losses.relations import Relations, make_relations
from zscmr_ray.models.base import SideOutput, VectorBlock, build_seeded
from zscmr_ray.models.build import build_model
from zscmr_ray.models.fused_attention import PairScores
from zscmr_ray.models.imfa import Inn, InnSettings
from zscmr_ray.models.noise import RowNoise

SETTINGS = InnSettings(image_channels=6, text_channels=5, width=8, attention_width=3)
NUM_ROWS = 5
LENGTHS = torch.tensor([7, 3, 1, 9, 4])
ATTENTIONS = ("mean", "self", "fused")
FUSIONS = ("hadamard", "sum", "concat")


def model(seed: int = 0, **changes: object) -> Inn:
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return build_seeded(lambda: Inn(settings), seed=seed)


def features() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(NUM_ROWS, 4, 6, generator=generator), torch.randn(NUM_ROWS, 9, 5, generator=generator)


def encode(inn: Inn) -> tuple[SideOutput, SideOutput]:
    regions, tokens = features()
    noise = RowNoise(0, 0, torch.arange(NUM_ROWS))
    return inn.encode_image(regions, noise=noise), inn.encode_text(tokens, LENGTHS, noise=noise)


def relations(names: str = "aabbc", captions: str | None = None) -> Relations:
    return make_relations([(name,) for name in names], caption_keys=captions)


def loop_scores(inn: Inn, image: SideOutput, text: SideOutput) -> list[list[float]]:
    """The equations of the module, a pair and a region at a time."""
    rows = []
    for i in range(len(image.regions_BRD)):
        row = []
        for j in range(len(text.region_BD)):
            logits = []
            for key in image.keys_BRA[i]:
                query = text.query_BA[j]
                fused = key * query if inn.settings.fusion == "hadamard" else key + query
                if inn.settings.fusion == "concat":
                    fused = inn.pairs.mix_weight @ torch.relu(fused) + inn.pairs.mix_bias
                logits.append(
                    sum(float(w) * math.tanh(float(f)) for w, f in zip(inn.pairs.score, fused, strict=True))
                )
            total = sum(math.exp(value) for value in logits)
            vector = sum(
                math.exp(value) / total * region
                for value, region in zip(logits, image.regions_BRD[i], strict=True)
            )
            row.append(float(vector @ text.region_BD[j] / vector.norm()))
        rows.append(row)
    return rows


@pytest.mark.parametrize("fusion", FUSIONS)
def test_pair_scores_are_the_equations(fusion: str) -> None:
    inn = model(fusion=fusion).eval()
    image, text = encode(inn)
    with torch.no_grad():
        found = inn.score_pairs(image, text)
        assert found.shape == (NUM_ROWS, NUM_ROWS)
        torch.testing.assert_close(found, torch.tensor(loop_scores(inn, image, text)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_served_vector_is_the_weighted_mean_of_projected_regions(attention: str) -> None:
    inn = model(attention=attention).eval()
    image, text = encode(inn)
    states = inn.image_trunk(features()[0], LENGTHS)
    weights = torch.full((NUM_ROWS, 4), 0.25)
    if attention != "mean":
        head = inn.attention
        logits = torch.stack([head.score(torch.tanh(head.key(row))).squeeze(1) for row in states])
        weights = logits.softmax(1)
        torch.testing.assert_close(image.weights_BR, weights)
    pooled = (weights[:, :, None] * states).sum(1)
    torch.testing.assert_close(inn.vectors(image), pooled / pooled.norm(dim=1, keepdim=True))
    torch.testing.assert_close(inn.vectors(text).norm(dim=1), torch.ones(NUM_ROWS))
    assert inn.blocks == (VectorBlock("region", 0, 8),)
    assert inn.scores_pairs is (attention == "fused")


@pytest.mark.parametrize("fusion", FUSIONS)
def test_kept_regions_and_one_text_give_the_pair_scores(fusion: str) -> None:
    inn = model(fusion=fusion).eval()
    image, text = encode(inn)
    expected_NM = inn.score_pairs(image, text).detach()
    for column in range(NUM_ROWS):
        one = SideOutput.from_loss_tensors(
            {name: value[column : column + 1] for name, value in text.pair_tensors().items()}
        )
        torch.testing.assert_close(inn.score_regions(image.regions_BRD, one), expected_NM[:, column])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_score_depends_on_its_own_text_and_image_only(fusion: str) -> None:
    """No leak: the column of text j is the same whatever the other texts are, in training as in eval."""
    inn = model(fusion=fusion)
    image, text = encode(inn)
    regions, tokens = features()
    changed = tokens.clone()
    changed[2] = 9 * torch.randn(9, 5, generator=torch.Generator().manual_seed(3))
    for training in (True, False):
        inn.train(training)
        before = inn.score_pairs(image, text)
        after = inn.score_pairs(image, inn.encode_text(changed, LENGTHS))
        others = [0, 1, 3, 4]
        assert torch.equal(before[:, others], after[:, others])
        assert not torch.allclose(before[:, 2], after[:, 2], atol=1e-3)
        alone = inn.score_pairs(inn.encode_image(regions[3:4]), inn.encode_text(tokens[1:2], LENGTHS[1:2]))
        torch.testing.assert_close(alone[0, 0], before[3, 1], atol=1e-5, rtol=1e-5)


def test_the_loss_compares_negatives_by_their_own_text() -> None:
    """The hinge from the loop scores of every pair; identical captions are neither negative nor pair."""
    inn = model(distill_weight=0.0)
    image, text = encode(inn)
    with torch.no_grad():
        scores = loop_scores(inn, image, text)
    names = "aabbc"
    for captions, same in ((None, "negative"), ("vwxyv", "negative"), (None, "ignored")):
        inn.contrast.settings = replace(inn.contrast.settings, same_class=same)
        terms: list[list[float]] = [[], []]
        for direction in (0, 1):
            for i in range(NUM_ROWS):
                rivals = []
                for j in range(NUM_ROWS):
                    equal = i == j or (captions is not None and captions[i] == captions[j])
                    if not equal and (same == "negative" or names[i] != names[j]):
                        rivals.append(scores[i][j] if direction == 0 else scores[j][i])
                terms[direction].append(max(0.0, 0.2 - scores[i][i] + max(rivals)))
        expected = sum(sum(direction) / NUM_ROWS for direction in terms) / 2
        total = inn.loss(image, text, relations(names, captions))["total"]
        assert total.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_chunks_change_neither_scores_nor_gradients(fusion: str) -> None:
    found = []
    for chunk_entries in (1, 2 * NUM_ROWS * 4 * 3, 1 << 20):
        inn = model(fusion=fusion)
        inn.pairs.chunk_entries = chunk_entries
        parts = inn.loss(*encode(inn), relations())
        parts["total"].backward()
        found.append([parts["total"], *(p.grad for p in inn.parameters())])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("chunk_entries", [1, 1 << 20])
def test_gradcheck_in_float64(fusion: str, chunk_entries: int) -> None:
    pairs = build_seeded(lambda: PairScores(2, fusion=fusion, chunk_entries=chunk_entries), seed=0).double()
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 4), (2, 3, 2), (3, 4), (3, 2))
    inputs = [torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    parameters = list(pairs.parameters())

    def scores(*values: Tensor) -> Tensor:
        found: Tensor = pairs(*values[:4])[0]
        return found

    assert torch.autograd.gradcheck(scores, (*inputs, *parameters))


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    inn = model()
    image, text = encode(inn)
    frozen = replace(image, regions_BRD=image.regions_BRD.detach(), keys_BRA=image.keys_BRA.detach())
    inn.score_pairs(frozen, text).sum().backward()
    assert all(p.grad is None for p in inn.image_trunk.parameters())
    assert all(p.grad is not None for p in inn.query.parameters())


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("contrast", ["hinge", "infonce"])
def test_the_loss_trains_every_parameter(attention: str, contrast: str) -> None:
    inn = model(attention=attention, contrast=contrast, learned_temperature=True)
    parts = inn.loss(*encode(inn), relations())
    assert [name for name, value in parts.items() if value.requires_grad] == ["total"]
    assert ("distill" in parts) is (attention == "fused")
    parts["total"].backward()
    assert [n for n, p in inn.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_distilling_trains_the_text_free_attention_and_nothing_else() -> None:
    with_it, without = model(distill_weight=3.0), model(distill_weight=0.0)
    without.load_state_dict({n: v for n, v in with_it.state_dict().items() if not n.startswith("attention.")})
    for inn in (with_it, without):
        inn.loss(*encode(inn), relations())["total"].backward()
    plain = dict(without.named_parameters())
    for name, parameter in with_it.named_parameters():
        if not name.startswith("attention."):
            torch.testing.assert_close(parameter.grad, plain[name].grad)
    assert all(p.grad.abs().sum() > 0 for p in with_it.attention.parameters())
    image, _ = encode(without)
    assert image.weights_BR is None and image.log_weights_BR is None


def test_the_distilled_term_is_the_divergence_from_the_own_texts_attention() -> None:
    inn = model(fusion="sum")
    image, text = encode(inn)
    with torch.no_grad():
        expected = 0.0
        for i in range(NUM_ROWS):
            fused = (torch.tanh(image.keys_BRA[i] + text.query_BA[i]) @ inn.pairs.score).softmax(0)
            expected += float((fused * (fused / image.weights_BR[i]).log()).sum()) / NUM_ROWS
    assert inn.loss(image, text, relations())["distill"].item() == pytest.approx(expected, rel=1e-4)
    optimizer = torch.optim.Adam(inn.attention.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        parts = inn.loss(*encode(inn), relations())
        parts["total"].backward()
        optimizer.step()
    assert parts["distill"].item() < 0.3 * expected


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_padding_changes_nothing(attention: str) -> None:
    inn = model(attention=attention)
    regions, tokens = features()
    garbage = tokens.clone()
    for b, length in enumerate(LENGTHS.tolist()):
        garbage[b, length:] = float("nan")
    clean, dirty = (inn.encode_text(t, LENGTHS) for t in (tokens, garbage))
    for name, value in clean.loss_tensors().items():
        assert torch.equal(value, getattr(dirty, name)), name
    inn.loss(inn.encode_image(regions), dirty, relations())["total"].backward()
    assert all(p.grad.isfinite().all() for p in inn.parameters())


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(("names", "rows"), [("a", 1), ("aaaaa", 5)])
@pytest.mark.parametrize("contrast", ["hinge", "infonce"])
def test_degenerate_batches_keep_the_graph(attention: str, names: str, rows: int, contrast: str) -> None:
    inn = model(attention=attention, contrast=contrast, same_class="ignored", distill_weight=0.0)
    regions, tokens = features()
    sides = inn.encode_image(regions[:rows]), inn.encode_text(tokens[:rows], LENGTHS[:rows])
    parts = inn.loss(*sides, relations(names))
    assert parts["total"].item() == pytest.approx(0.0, abs=1e-6)
    parts["total"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in inn.parameters())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_architecture_rebuilds_the_model(attention: str) -> None:
    inn = model(attention=attention, fusion="concat", text_trunk="bigru").eval()
    again = build_model(inn.architecture(), seed=5).eval()
    again.load_state_dict(inn.state_dict())
    for one, other in zip(encode(inn), encode(again), strict=True):
        assert torch.equal(inn.vectors(one), again.vectors(other))
    if attention == "fused":
        assert torch.equal(inn.score_pairs(*encode(inn)), again.score_pairs(*encode(again)))


def test_loss_tensors_make_the_same_loss_again() -> None:
    inn = model()
    sides = encode(inn)
    assert set(sides[0].loss_tensors()) == {"region_BD", "regions_BRD", "keys_BRA", "log_weights_BR"}
    assert set(sides[1].loss_tensors()) == {"region_BD", "query_BA"}
    rebuilt = [SideOutput.from_loss_tensors(side.loss_tensors()) for side in sides]
    assert inn.loss(*rebuilt, relations())["total"] == inn.loss(*sides, relations())["total"]


def test_bfloat16_trains_and_scores_in_float32() -> None:
    inn = model().bfloat16()
    parts = inn.loss(*encode(inn), relations())
    assert parts["total"].dtype == torch.float32
    parts["total"].backward()
    assert all(p.grad.isfinite().all() for p in inn.parameters())


def test_a_hinge_with_same_class_positives_is_refused() -> None:
    with pytest.raises(ConfigError, match="same_class"):
        model(same_class="positive")
    with pytest.raises(ConfigError, match="colour"):
        build_model(model().architecture() | {"colour": "red"})
