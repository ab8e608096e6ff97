"""CCA against the generalised eigenproblem it solves and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from sklearn.cross_decomposition import CCA as ReferenceCCA

from zscmr_ray.errors import DataError
from zscmr_ray.models.cca import CCA


def pairs(
    num_pairs: int = 200, image_dim: int = 6, text_dim: int = 5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(num_pairs, 3)) * [3, 2, 1]
    image = shared @ rng.normal(size=(3, image_dim)) + rng.normal(size=(num_pairs, image_dim)) + 5
    text = shared @ rng.normal(size=(3, text_dim)) + rng.normal(size=(num_pairs, text_dim)) - 2
    return image, text


def test_correlations_solve_the_generalised_eigenproblem() -> None:
    image, text = pairs()
    regularisation = 0.3
    fitted = CCA.fit(image, text, num_components=5, regularisation=regularisation)
    x, y = image - image.mean(0), text - text.mean(0)
    cxx, cyy, cxy = (a.T @ b / (len(x) - 1) for a, b in ((x, x), (y, y), (x, y)))
    cxx += regularisation * np.trace(cxx) / len(cxx) * np.eye(len(cxx))
    cyy += regularisation * np.trace(cyy) / len(cyy) * np.eye(len(cyy))
    # Cxy Cyy^-1 Cyx a = rho^2 Cxx a
    squared = scipy.linalg.eigh(cxy @ np.linalg.solve(cyy, cxy.T), cxx, eigvals_only=True)[::-1][:5]
    np.testing.assert_allclose(fitted.correlations_K, np.sqrt(squared), rtol=1e-8)


def test_projections_are_scikit_learns_up_to_scale_and_sign() -> None:
    image, text = pairs()
    fitted = CCA.fit(image, text, num_components=2, regularisation=1e-12, correlation_power=0.0)
    reference = ReferenceCCA(n_components=2, tol=1e-12, max_iter=5000, scale=False).fit(image, text)
    for ours, theirs in (
        ((image - image.mean(0)) @ fitted.image_projection_DK, reference.transform(image)),
        ((text - text.mean(0)) @ fitted.text_projection_DK, reference.transform(image, text)[1]),
    ):
        for k in range(2):
            assert abs(np.corrcoef(ours[:, k], theirs[:, k])[0, 1]) > 1 - 1e-6


def test_projected_pairs_are_white_and_correlate_by_rho() -> None:
    image, text = pairs()
    fitted = CCA.fit(image, text, num_components=3, regularisation=1e-12, correlation_power=0.0)
    u = (image - fitted.image_mean_D) @ fitted.image_projection_DK
    v = (text - fitted.text_mean_D) @ fitted.text_projection_DK
    np.testing.assert_allclose(np.cov(u.T), np.eye(3), atol=1e-8)
    np.testing.assert_allclose((u.T @ v) / (len(u) - 1), np.diag(fitted.correlations_K), atol=1e-8)


def test_components_are_weighed_by_their_correlation() -> None:
    image, text = pairs()
    plain = CCA.fit(image, text, num_components=4, regularisation=0.1, correlation_power=0.0)
    weighed = CCA.fit(image, text, num_components=4, regularisation=0.1, correlation_power=1.0)
    np.testing.assert_allclose(
        weighed.image_projection_DK, plain.image_projection_DK * plain.correlations_K, rtol=1e-9
    )


def test_it_retrieves_held_out_pairs() -> None:
    image, text = pairs(400)
    fitted = CCA.fit(image[:300], text[:300])
    score = fitted.image(image[300:]) @ fitted.text(text[300:]).T
    ranks = (score > np.diag(score)[:, None]).sum(1)
    assert np.median(ranks) < 15  # chance is 50
    shuffled = CCA.fit(image[:300], np.random.default_rng(1).permutation(text[:300]))
    score = shuffled.image(image[300:]) @ shuffled.text(text[300:]).T
    assert np.median((score > np.diag(score)[:, None]).sum(1)) > 25


def test_vectors_are_unit_and_the_fit_is_deterministic_for_either_precision() -> None:
    image, text = pairs()
    first, second = CCA.fit(image, text), CCA.fit(image.astype(np.float32), text.astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(first.image(image), axis=1), 1, rtol=1e-6)
    assert first.image(image).dtype == np.float32
    np.testing.assert_array_equal(first.text(text), CCA.fit(image, text).text(text))
    # The sign of every component is fixed, so rounding of the inputs cannot flip one.
    np.testing.assert_allclose(first.image(image), second.image(image), atol=1e-4)


def test_few_pairs_of_many_dimensions_and_constant_columns() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(5, 40)), rng.normal(size=(5, 30))
    image[:, 0] = 7
    fitted = CCA.fit(image, text, num_components=64)
    assert fitted.image(image).shape == (5, 4)
    constant = CCA.fit(np.ones((4, 3)), text[:4])
    assert np.isfinite(constant.image(np.ones((2, 3)))).all()


def test_bad_input_is_refused() -> None:
    image, text = pairs(10)
    with pytest.raises(DataError, match="got: 10 images, 9 texts"):
        CCA.fit(image, text[:9])
    with pytest.raises(DataError, match="3 or more"):
        CCA.fit(image[:2], text[:2])
    image[3, 3] = np.nan
    with pytest.raises(DataError, match="finite"):
        CCA.fit(image, text)
