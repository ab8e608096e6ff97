"""`best`: its moments against loops, one unit vector of weighed parts, kept on disk whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.models.alignment_statistics import (
    PairRows,
    cross_covariance,
    discriminants,
    regression,
    side_moments,
)
from zscmr_ray.models.backbones import load_image_backbone, load_text_backbone
from zscmr_ray.models.best import Best
from zscmr_ray.models.best_settings import PARTS, BestSettings
from zscmr_ray.models.build import build_model
from zscmr_ray.models.teacher_head import TeacherHead, read_teacher_head

F, D, C, K = 7, 5, 6, 8


def make_rows(num: int = 60, seed: int = 0) -> PairRows:
    rng = np.random.default_rng(seed)
    class_N = rng.integers(0, 4, num)
    image = rng.normal(size=(4, F))[class_N] + rng.normal(size=(num, F)) + 1
    text = rng.normal(size=(4, D))[class_N] + rng.normal(size=(num, D)) - 1
    return PairRows(image.astype(np.float32), text.astype(np.float32), class_N)


def make_head(seed: int = 1) -> TeacherHead:
    generator = torch.Generator().manual_seed(seed)
    wordings = (
        torch.nn.functional.normalize(torch.randn(C, D, generator=generator), dim=1) for _ in range(3)
    )
    return TeacherHead(torch.randn(C, F, generator=generator), torch.randn(C, generator=generator), *wordings)


def untrained(**settings: float) -> Best:
    return Best(BestSettings(F, D, C, num_landmarks=K, **settings))  # type: ignore[arg-type]


def fit(model: Best, rows: PairRows) -> Best:
    """Each text is one token and each image one region: their means."""
    tokens_ND = torch.from_numpy(rows.text_ND)
    model.token_kernel.fit(tokens_ND, seed=0)
    model.set_teacher(make_head())
    shares_NC = model.region_shares(torch.from_numpy(rows.image_NF)[:, None])
    model.fit(rows, make_head(), kernel_NK=kernel_of(model, tokens_ND), region_shares_NC=shares_NC)
    return model.eval()


def kernel_of(model: Best, tokens_ND: torch.Tensor) -> torch.Tensor:
    found_NK: torch.Tensor = model.token_kernel(
        tokens_ND[:, None], torch.ones(len(tokens_ND), dtype=torch.int64)
    )
    return found_NK


def image_parts(model: Best) -> list[torch.Tensor]:
    regions = torch.rand(2, 3, F)
    return model.image_parts(regions.mean(1), model.region_shares(regions))


def fitted(**settings: float) -> Best:
    return fit(untrained(**settings), make_rows())


def test_moments_are_those_of_the_equations() -> None:
    rows, a = make_rows(), 0.3
    image, text = (side_moments(side, rows.class_N) for side in (rows.image_NF, rows.text_ND))
    found = cross_covariance(image, text, class_share=a)
    x, y = rows.image_NF.astype(float), rows.text_ND.astype(float)
    x, y = x - x.mean(0), y - y.mean(0)
    expected, within, total = np.zeros((F, D)), np.zeros((F, F)), np.zeros((F, F))
    for n, label in enumerate(rows.class_N):
        same = rows.class_N == label
        expected += (1 - a) * np.outer(x[n], y[n]) + a * np.outer(x[same].mean(0), y[same].mean(0))
        within += np.outer(x[n] - x[same].mean(0), x[n] - x[same].mean(0))
        total += np.outer(x[n], x[n])
    np.testing.assert_allclose(found, expected / (len(x) - 1), atol=1e-9)
    np.testing.assert_allclose(image.within_DD, within / (len(x) - 1), atol=1e-9)
    np.testing.assert_allclose(image.total_DD, total / (len(x) - 1), atol=1e-9)


def test_regression_solves_its_normal_equations() -> None:
    rows = make_rows()
    text = side_moments(rows.text_ND, rows.class_N)
    cross = np.arange(D * 3.0).reshape(D, 3)
    solved = regression(text, cross, regularisation=2.0)
    ridge = 2.0 * np.trace(text.total_DD) / D
    np.testing.assert_allclose((text.total_DD + ridge * np.eye(D)) @ solved, cross, atol=1e-9)


def test_discriminants_are_scikit_learns_and_take_the_largest_classes() -> None:
    rows = make_rows(num=300)
    image = side_moments(rows.image_NF, rows.class_N)
    weight, offset = discriminants(image, rows.class_N, regularisation=1e-9, max_classes=4)
    reference = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.25] * 4).fit(rows.image_NF, rows.class_N)
    expected, ours = reference.decision_function(rows.image_NF), image.rows_ND @ weight + offset
    np.testing.assert_array_equal(ours.argmax(1), expected.argmax(1))
    assert ours.std() == pytest.approx(1.0)
    # One class of three rows and one of a single row: the first is the smallest that counts.
    class_N = np.array([0] * 10 + [1] * 3 + [2] + [3] * 286)
    image = side_moments(rows.image_NF, class_N)
    for most, num in ((2, 2), (9, 3)):
        assert discriminants(image, class_N, regularisation=1.0, max_classes=most)[0].shape == (F, num)


def test_a_vector_is_its_weighed_unit_parts_and_no_part_is_left_out() -> None:
    model = fitted()
    image, text = torch.rand(3, 4, F), torch.rand(2, 5, D)
    lengths = torch.tensor([5, 5])
    images = model.image_parts(image.mean(1), model.region_shares(image))
    texts = model.text_parts(text.mean(1), model.token_kernel(text, lengths))
    parts = [one @ other.T for one, other in zip(images, texts, strict=True)]
    weights = {"named": 4.0, "semantic": 3.0, "seen": 2.0, "contrasted": 1.0}
    model.set_part_weights(weights)
    vectors = model.vectors(model.encode_image(image)), model.vectors(model.encode_text(text, lengths))
    for side in vectors:
        torch.testing.assert_close(side.norm(dim=1), torch.ones(len(side)))
    expected = sum(weights[name] / 10 * part for name, part in zip(PARTS, parts, strict=True))
    torch.testing.assert_close(vectors[0] @ vectors[1].T, expected)
    for name in PARTS:
        model.set_part_weights({**weights, name: 0.0})
        without = model.encode_image(image).region_BD @ model.encode_text(text, lengths).region_BD.T  # type: ignore[operator, union-attr]
        assert not torch.allclose(without, expected, atol=1e-3), name


def test_the_trained_classes_of_texts_are_told_by_both_inputs_as_if_each_had_a_mean_square_of_1() -> None:
    rows, model = make_rows(), fitted()
    tokens_ND = torch.from_numpy(rows.text_ND)
    text_ND = torch.nn.functional.normalize(tokens_ND, dim=1)
    kernel_NK = kernel_of(model, tokens_ND)
    both = [side - side.mean(0) for side in (text_ND, kernel_NK)]
    both_NE = torch.cat([side / side.square().sum(1).mean().sqrt() for side in both], dim=1)
    weight_EC, offset_C = discriminants(
        side_moments(both_NE.numpy(), rows.class_N), rows.class_N, regularisation=0.1, max_classes=128
    )
    shares_NC = torch.softmax(
        (both_NE.double() @ torch.from_numpy(weight_EC) + torch.from_numpy(offset_C)) / 0.25, dim=1
    ).sqrt()
    expected = torch.nn.functional.normalize(shares_NC - shares_NC.mean(0), dim=1).float()
    found = model.plain_text_parts(tokens_ND, kernel_NK)[PARTS.index("seen")]
    torch.testing.assert_close(found[:, :4], expected, atol=1e-3, rtol=1e-3)


def test_an_image_is_named_by_its_mean_and_by_its_single_regions() -> None:
    model, regions = fitted(), torch.rand(3, 4, F)
    head, unit = make_head(), torch.nn.functional.normalize
    logits_BRC = regions @ head.weight_CF.T + head.bias_C
    shares_BC = torch.softmax(logits_BRC / 3, dim=2).mean(1)
    torch.testing.assert_close(model.region_shares(regions), shares_BC)
    means = model.named_images.fitted
    of_mean_BC = torch.softmax(logits_BRC.mean(1) / 3, dim=1).sqrt() - means["mean"]
    of_regions_BC = shares_BC.sqrt() - means["regions_mean"]
    both_BC = unit(unit(of_mean_BC, dim=1) + unit(of_regions_BC, dim=1), dim=1)
    expected = unit(both_BC.sign() * both_BC.abs() ** 1.25, dim=1)
    torch.testing.assert_close(model.plain_image_parts(regions.mean(1), shares_BC)[0], expected)


@pytest.mark.parametrize("name", ["named", "seen"])
def test_a_part_is_whitened_by_both_sides_of_the_training_pairs(name: str) -> None:
    rows, model, place = make_rows(), fitted(), PARTS.index(name)
    tokens_ND, regions_NRF = torch.from_numpy(rows.text_ND), torch.from_numpy(rows.image_NF)[:, None]
    shares_NC, kernel_NK = model.region_shares(regions_NRF), kernel_of(model, tokens_ND)
    sides = [
        parts[place].double().numpy()
        for parts in (
            model.plain_image_parts(torch.from_numpy(rows.image_NF), shares_NC),
            model.plain_text_parts(tokens_ND, kernel_NK),
        )
    ]
    centred = [side - side.mean(0) for side in sides]
    metric = np.zeros((len(sides[0][0]),) * 2)
    for side in centred:
        metric += side.T @ side / np.square(side).sum() / 2
    num = int((np.diag(metric) > 0).sum())
    ridge = model.settings.whitenings[name] / num
    values, vectors = np.linalg.eigh(metric + ridge * np.eye(len(metric)))
    root = vectors @ np.diag(values**-0.25) @ vectors.T
    found = [
        model.image_parts(torch.from_numpy(rows.image_NF), shares_NC)[place],
        model.text_parts(tokens_ND, kernel_NK)[place],
    ]
    for one, side in zip(found, centred, strict=True):
        turned = side @ root
        expected = turned / np.linalg.norm(turned, axis=1, keepdims=True)
        np.testing.assert_allclose(one.numpy(), expected, atol=1e-4)


def test_parts_without_a_whitening_pass_as_they_are() -> None:
    model, regions = fitted(), torch.rand(2, 3, F)
    shares_BC = model.region_shares(regions)
    plain, whitened = (
        parts(regions.mean(1), shares_BC) for parts in (model.plain_image_parts, model.image_parts)
    )
    for name, one, other in zip(PARTS, plain, whitened, strict=True):
        assert torch.equal(one, other) == (name not in model.settings.whitenings), name


def test_padding_does_not_count() -> None:
    model, text = fitted(), torch.rand(1, 3, D)
    padded = torch.cat([text, torch.full((1, 2, D), 9.0)], dim=1)
    one = model.encode_text(text, torch.tensor([3])).region_BD
    torch.testing.assert_close(model.encode_text(padded, torch.tensor([3])).region_BD, one)


def test_fitting_twice_and_loading_give_the_same_bytes() -> None:
    first, second = fitted(), fitted()
    loaded = build_model(first.architecture())
    loaded.load_state_dict(first.state_dict())
    for model in (second, loaded):
        for name, value in first.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_logits_come_from_the_regions_as_the_backbone_s_do() -> None:
    image, text = load_image_backbone("tiny"), load_text_backbone("tiny", max_tokens=4)
    head = read_teacher_head(image, text)
    pixels = torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8)
    features = image(pixels, region_grid=7)
    found = features.regions_BRD.mean(1) @ head.weight_CF.T + head.bias_C
    assert features.logits_BC is not None
    torch.testing.assert_close(found, features.logits_BC, atol=1e-4, rtol=1e-4)
    assert head.name_CD.shape == (len(image.class_names or ()), text.num_channels)


def test_what_cannot_be_fitted_is_refused() -> None:
    model, rows = untrained(), make_rows()
    with pytest.raises(DataError, match="too few pairs"):
        fit(model, PairRows(rows.image_NF[:2], rows.text_ND[:2], rows.class_N[:2]))
    broken = rows.image_NF.copy()
    broken[3, 1] = np.nan
    with pytest.raises(DataError, match="finite"):
        fit(model, PairRows(broken, rows.text_ND, rows.class_N))
    with pytest.raises(ConfigError, match="teacher"):
        Best(BestSettings(F, D, 0))
    for weights in ({"named": 1.0}, dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, -1.0)):
        with pytest.raises(ConfigError, match="weights"):
            model.set_part_weights(weights)


def test_few_rows_and_rows_without_classes_are_fitted() -> None:
    """Where no class has two rows the part of the trained classes is nothing."""
    rows = make_rows(num=4)
    model = fit(untrained(), PairRows(rows.image_NF, rows.text_ND, np.arange(4)))
    seen = PARTS.index("seen")
    parts = image_parts(model)
    assert all(torch.isfinite(part).all() for part in parts)
    assert not parts[seen].any()
    assert image_parts(fitted())[seen].norm(dim=1).allclose(torch.ones(2))
