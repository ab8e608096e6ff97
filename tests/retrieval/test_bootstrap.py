"""Class-then-query resampling: spread, sharing of class draws, and empty samples."""

from __future__ import annotations

import numpy as np
import pytest

from zscmr_ray.retrieval.bootstrap import harmonic_mean, interval, resample_means


def test_the_spread_is_that_of_the_classes() -> None:
    # Within a class all queries agree: only the class draws vary, by sigma / sqrt(C).
    classes = np.repeat(np.arange(25), 40)
    values = np.linspace(0.0, 1.0, 25)[classes]
    (means,) = resample_means([(values, classes)], num_resamples=4000, seed=1)
    assert means.mean() == pytest.approx(0.5, abs=0.01)
    assert means.std() == pytest.approx(np.linspace(0, 1, 25).std() / np.sqrt(25), rel=0.05)
    low, high = interval(means)
    assert 0.36 < low < 0.42 < 0.58 < high < 0.64


def test_one_class_varies_by_its_queries() -> None:
    values = np.random.default_rng(0).random(50)
    (means,) = resample_means([(values, np.zeros(50, np.int64))], num_resamples=4000, seed=2)
    assert means.std() == pytest.approx(values.std() / np.sqrt(50), rel=0.05)


def test_samples_share_their_class_draws() -> None:
    classes = np.repeat(np.arange(10), 5)
    values = np.arange(10.0)[classes]
    one, other = resample_means([(values, classes), (values[::5], classes[::5])], num_resamples=200)
    assert one == pytest.approx(other)


def test_same_seed_same_means_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    sample = (rng.random(30), rng.integers(0, 4, 30))
    first = resample_means([sample], num_resamples=50, seed=7)[0]
    assert np.array_equal(first, resample_means([sample], num_resamples=50, seed=7)[0])
    assert not np.array_equal(first, resample_means([sample], num_resamples=50, seed=8)[0])
    monkeypatch.setattr("zscmr_ray.retrieval.bootstrap.CHUNK_DRAWS", 20)
    assert resample_means([sample], num_resamples=50, seed=7)[0] == pytest.approx(first)


def test_undefined_values_and_missing_classes_are_left_out() -> None:
    nothing = (np.array([np.nan]), np.array([0]))
    assert np.isnan(resample_means([nothing], num_resamples=5)[0]).all()
    assert resample_means([], num_resamples=5) == []
    some = (np.array([0.25, np.nan]), np.array([4, 5]))
    found = resample_means([some, nothing], num_resamples=5)
    assert found[0].tolist() == [0.25] * 5
    assert np.isnan(found[1]).all()
    assert np.isnan(interval(found[1])).all()


def test_harmonic_mean_of_nothing_is_zero() -> None:
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert np.isnan(harmonic_mean(float("nan"), 0.5))
