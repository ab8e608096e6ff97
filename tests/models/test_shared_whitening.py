"""A metric for both sides: what varies together counts once, what stays the same takes no part, and no side leads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zscmr_ray.models.shared_whitening import PartWhitenings, SharedWhitening, inverse_fourth_root


def unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def test_the_root_is_the_inverse_fourth_one_of_the_ridged_covariance() -> None:
    factor = np.random.default_rng(0).normal(size=(5, 9))
    covariance = factor @ factor.T
    root = inverse_fourth_root(covariance, 0.5)
    ridged = covariance + 0.5 * np.trace(covariance) / 5 * np.eye(5)
    np.testing.assert_allclose(np.linalg.matrix_power(root, 4) @ ridged, np.eye(5), atol=1e-9)


def test_columns_that_never_vary_are_as_if_they_were_not_there() -> None:
    generator = torch.Generator().manual_seed(0)
    image_ND, text_ND = (unit(torch.randn(40, 4, generator=generator)) for _ in range(2))
    small, wide = (SharedWhitening(width, regularisation=1.0) for width in (4, 7))
    padded = [torch.nn.functional.pad(side, (0, 3)) for side in (image_ND, text_ND)]
    small.fit(image_ND, text_ND)
    wide.fit(*padded)
    torch.testing.assert_close(wide.image(padded[0])[:, :4], small.image(image_ND))
    torch.testing.assert_close(wide.text(padded[1])[:, :4], small.text(text_ND))
    assert not wide.image(padded[0])[:, 4:].any()


def test_the_same_thing_in_many_columns_counts_for_less() -> None:
    """One trait in 20 columns, another in a single one: the first leads before, not after."""
    traits = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    rows_ND = unit(torch.cat([traits[:, :1].expand(-1, 20), traits[:, 1:]], dim=1))
    whitening = SharedWhitening(21, regularisation=0.01)
    whitening.fit(rows_ND, rows_ND)
    share = [float((side[:, 20] ** 2).mean()) for side in (rows_ND, whitening.image(rows_ND))]
    assert share[0] < 0.25 < share[1]


@pytest.mark.parametrize("rows_ND", [torch.zeros(6, 3), unit(torch.ones(6, 3))])
def test_nothing_that_varies_gives_nothing(rows_ND: torch.Tensor) -> None:
    whitening = SharedWhitening(3, regularisation=1.0)
    whitening.fit(rows_ND, rows_ND)
    for found in (whitening.image(rows_ND), whitening.text(rows_ND)):
        assert torch.isfinite(found).all()
    assert torch.isfinite(whitening.image(unit(torch.randn(2, 3)))).all()


def test_only_parts_with_a_ridge_are_turned() -> None:
    parts = [unit(torch.randn(30, width)) for width in (3, 4)]
    both = PartWhitenings({"a": 3, "b": 4}, {"b": 1.0})
    both.fit(parts, parts)
    for found in (both.image(parts), both.text(parts)):
        assert found[0] is parts[0] and not torch.allclose(found[1], parts[1])
