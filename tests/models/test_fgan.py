"""FGAN as a whole: vectors, parts of the loss, rows that do not see their batch, and the defects switched back on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from zscmr_ray.errors import ConfigError
from zscmr_ray.losses.relations import Relations, make_relations
from zscmr_ray.models.base import SideOutput, VectorBlock
from zscmr_ray.models.build import build_model
from zscmr_ray.models.fgan import RELEASED, Fgan, FganSettings, build_fgan
from zscmr_ray.models.noise import RowNoise

SETTINGS = FganSettings(
    image_channels=6, text_channels=5, num_classes=7, width=8, num_heads=2, latent=4, num_noise_samples=16
)
NUM_ROWS = 5
LENGTHS = torch.tensor([12, 3, 1, 20, 7])


def model(**changes: object) -> Fgan:
    return build_fgan(replace(SETTINGS, **changes), seed=0)


def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(NUM_ROWS, 9, 6, generator=generator), torch.randn(NUM_ROWS, 20, 5, generator=generator)


def encode(fgan: Fgan, *, step: int = 0) -> tuple[SideOutput, SideOutput]:
    regions, tokens = features()
    noise = RowNoise(0, step, torch.arange(NUM_ROWS))
    return fgan.encode_image(regions, noise=noise), fgan.encode_text(tokens, LENGTHS, noise=noise)


def relations(names: str = "aabbc") -> Relations:
    return make_relations([(name,) for name in names])


def prior() -> torch.Tensor:
    return torch.randn(NUM_ROWS, 7, generator=torch.Generator().manual_seed(2))


def test_vectors_are_unit_blocks_side_by_side() -> None:
    fgan = model().eval()
    assert fgan.blocks == (VectorBlock("region", 0, 8), VectorBlock("label", 8, 15))
    assert fgan.dim == 15
    fgan.label_temperature = 0.5
    for output in encode(fgan):
        vectors = fgan.vectors(output)
        torch.testing.assert_close(vectors[:, :8].norm(dim=1), torch.ones(NUM_ROWS))
        torch.testing.assert_close(vectors[:, 8:].norm(dim=1), torch.ones(NUM_ROWS))
        assert output.logits_BC is not None
        torch.testing.assert_close(vectors[:, 8:].square(), (output.logits_BC / 0.5).softmax(1))


def test_the_total_is_the_weighted_sum_and_trains_every_parameter() -> None:
    fgan = model(fgcl_weight=2.0, fgla_weight=0.5)
    parts = fgan.loss(*encode(fgan), relations(), prior())
    assert parts["total"].item() == pytest.approx(
        2 * parts["fgcl"].item() + 0.5 * parts["fgla"].item(), rel=1e-5
    )
    assert parts["collapse_value"].item() == pytest.approx(0.73)
    assert [name for name, value in parts.items() if value.requires_grad] == ["total"]
    parts["total"].backward()
    assert [
        name for name, p in fgan.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ] == []


def test_loss_tensors_make_the_same_loss_again() -> None:
    fgan = model()
    sides = encode(fgan)
    rebuilt = [SideOutput.from_loss_tensors(side.loss_tensors()) for side in sides]
    assert (
        fgan.loss(*rebuilt, relations(), prior())["total"] == fgan.loss(*sides, relations(), prior())["total"]
    )
    assert set(sides[0].loss_tensors()) == {"region_BD", "logits_BC", "reconstruction_B", "kl_B"}


def test_a_row_does_not_see_its_batch_in_training() -> None:
    fgan = model()
    (image, text), (regions, tokens) = encode(fgan), features()
    noise = RowNoise(0, 0, torch.tensor([3, 1]))
    rows = [3, 1]
    small = (
        fgan.encode_image(regions[rows], noise=noise),
        fgan.encode_text(tokens[rows], LENGTHS[rows], noise=noise),
    )
    for side, part in zip((image, text), small, strict=True):
        for name, value in part.loss_tensors().items():
            torch.testing.assert_close(value, getattr(side, name)[rows], rtol=1e-4, atol=1e-5)


def test_steps_differ_and_repeat() -> None:
    fgan = model()
    first, again, next_step = (encode(fgan, step=step)[0].region_BD for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, next_step, atol=1e-4)


def test_defect_03_padding_changes_nothing() -> None:
    _, tokens = features()
    garbage = tokens.clone()
    for b, length in enumerate(LENGTHS.tolist()):
        garbage[b, length:] = 1e3
    for training in (True, False):
        noise = RowNoise(0, 0, torch.arange(NUM_ROWS))
        ours, released = model().train(training), model(defect=3).train(training)
        clean, dirty = (ours.vectors(ours.encode_text(t, LENGTHS, noise=noise)) for t in (tokens, garbage))
        assert torch.equal(clean, dirty)
        clean, dirty = (
            released.vectors(released.encode_text(t, LENGTHS, noise=noise)) for t in (tokens, garbage)
        )
        assert not torch.allclose(clean, dirty, atol=1e-3)


def test_defect_04_retrieval_vectors_are_deterministic() -> None:
    fgan = model(ratio=0.3).eval()
    assert torch.equal(*(fgan.vectors(encode(fgan)[0]) for _ in range(2)))
    released = model(ratio=0.3, defect=4).eval()
    assert not torch.equal(*(released.vectors(encode(released)[0]) for _ in range(2)))


def test_defect_09_a_single_class_batch_keeps_the_graph_to_every_parameter() -> None:
    fgan = model(fgla_weight=0, weak_weight=0)
    parts = fgan.loss(*encode(fgan), relations("aaaaa"))
    assert parts["total"].item() == 0
    assert parts["num_negative"].item() == 0
    parts["total"].backward()
    assert all(p.grad is not None for p in fgan.parameters())


@pytest.mark.parametrize("defect", [1, 2, 3, 5, 11])
def test_a_defect_changes_the_gradient(defect: int) -> None:
    gradients = []
    for fgan in (model(), model(defect=defect)):
        fgan.loss(*encode(fgan), relations(), prior())["total"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in fgan.parameters()]))
    assert not torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("defect", [6, 7, 8, 12])
def test_defects_of_cost_and_of_the_loop_leave_the_model_alone(defect: int) -> None:
    totals = [
        fgan.loss(*encode(fgan), relations(), prior())["total"].item()
        for fgan in (model(), model(defect=defect))
    ]
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)


def test_every_released_defect_has_a_line() -> None:
    assert sorted(RELEASED) == list(range(1, 13))


def test_heads_that_no_loss_trains_are_not_built() -> None:
    regions_only, labels_only = model(fgla_weight=0), model(fgcl_weight=0)
    assert [block.name for block in regions_only.blocks] == ["region"]
    assert [block.name for block in labels_only.blocks] == ["label"]
    assert labels_only.blocks[0].start == 0
    assert not any("label" in name for name, _ in regions_only.named_parameters())
    assert not any("region" in name for name, _ in labels_only.named_parameters())
    parts = labels_only.loss(*encode(labels_only), relations(), prior())
    assert "fgcl" not in parts
    assert labels_only.vectors(encode(labels_only)[1]).shape == (NUM_ROWS, 7)
    assert model(num_classes=0).blocks == (VectorBlock("region", 0, 8),)


def test_without_prior_logits_the_prior_term_is_not_computed() -> None:
    fgan = model()
    assert "fgla_prior" not in fgan.loss(*encode(fgan), relations())
    assert "fgla_prior" in fgan.loss(*encode(fgan), relations(), prior())


def test_the_architecture_rebuilds_the_model() -> None:
    fgan = model(selection="mean", text_trunk="linear")
    again = build_model(fgan.architecture(), seed=5)
    again.load_state_dict(fgan.state_dict())
    regions, _ = features()
    fgan.eval(), again.eval()
    assert torch.equal(*(m.vectors(m.encode_image(regions)) for m in (fgan, again)))


def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone() -> None:
    torch.manual_seed(9)
    before = torch.get_rng_state()
    one, same, other = (build_fgan(SETTINGS, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["image.trunk.project.0.weight"], other["image.trunk.project.0.weight"])


def test_bfloat16_trains() -> None:
    fgan = model().bfloat16()
    parts = fgan.loss(*encode(fgan), relations(), prior().half())
    assert parts["total"].dtype == torch.float32
    parts["total"].backward()
    assert all(p.grad.isfinite().all() for p in fgan.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"defect": 13}, "defect"), ({"fgcl_weight": 0, "num_classes": 0}, "nothing to train")],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model(**changes)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="method"):
        build_model({"method": "gan"})
    with pytest.raises(ConfigError, match="colour"):
        build_model(model().architecture() | {"colour": "red"})


def test_bfloat16_autocast_is_near_float32() -> None:
    totals = []
    for enabled in (False, True):
        fgan = model()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            sides = encode(fgan)
        total = fgan.loss(*sides, relations(), prior())["total"]
        total.backward()
        assert all(p.grad.isfinite().all() for p in fgan.parameters())
        totals.append(total.item())
    assert totals[0] == pytest.approx(totals[1], rel=0.02)
