"""Ridge against scikit-learn and the mean of two cosines."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge as Reference

from tests.models.test_cca import pairs
from zscmr_ray.errors import DataError
from zscmr_ray.models.ridge import Ridge


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_both_regressions_are_scikit_learns_and_the_score_is_the_mean_of_two_cosines() -> None:
    image, text = pairs()
    fitted = Ridge.fit(image, text, regularisation=0.3)
    x, y = image - image.mean(0), text - text.mean(0)
    mapped = []
    for source, target in ((y, x), (x, y)):
        ridge = 0.3 * np.trace(source.T @ source) / source.shape[1]
        mapped.append(Reference(alpha=ridge, fit_intercept=False).fit(source, target).predict(source))
    expected = (unit(x) @ unit(mapped[0]).T + unit(mapped[1]) @ unit(y).T) / 2
    found = fitted.image(image) @ fitted.text(text).T
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(fitted.image(image), axis=1), 1, atol=1e-6)
    one = Ridge.fit(image, text, regularisation=0.3, space="image")
    np.testing.assert_allclose(one.image(image) @ one.text(text).T, unit(x) @ unit(mapped[0]).T, atol=1e-5)
    other = Ridge.fit(image, text, regularisation=0.3, space="text")
    np.testing.assert_allclose(
        other.image(image) @ other.text(text).T, unit(mapped[1]) @ unit(y).T, atol=1e-5
    )


def test_pairs_are_found_and_fitting_repeats() -> None:
    image, text = pairs(seed=3)
    fitted = Ridge.fit(image, text)
    own = (fitted.image(image) @ fitted.text(text).T).diagonal().mean()
    shuffled = (fitted.image(image) @ fitted.text(text[::-1]).T).diagonal().mean()
    assert own > shuffled + 0.3
    assert np.array_equal(fitted.image(image), Ridge.fit(image, text).image(image))


def test_constant_features_and_fewer_rows_than_columns_are_finite() -> None:
    image, text = pairs(num_pairs=4, image_dim=9)
    image[:, 0] = 1.0
    fitted = Ridge.fit(image, np.zeros_like(text))
    assert np.isfinite(fitted.image(image)).all() and np.isfinite(fitted.text(text)).all()


def test_what_cannot_be_fitted_is_refused() -> None:
    image, text = pairs()
    with pytest.raises(DataError, match="pairs"):
        Ridge.fit(image[:2], text[:2])
    with pytest.raises(DataError, match="finite"):
        Ridge.fit(np.full_like(image, np.nan), text)
