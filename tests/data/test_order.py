"""The training order: pure, complete, and different from epoch to epoch."""

from __future__ import annotations

import numpy as np
import pytest

from zscmr_ray.data.order import caption_choice, row_key, step_rows, steps_per_epoch
from zscmr_ray.errors import ConfigError


def test_an_epoch_takes_every_row_once_but_the_last_partial_batch() -> None:
    steps = [step_rows(num_rows=23, global_batch_size=4, seed=1, step=s) for s in range(5)]
    rows = np.concatenate(steps)
    assert len(set(rows.tolist())) == 20 and rows.min() >= 0 and rows.max() < 23
    assert all(batch.dtype == np.int64 and batch.shape == (4,) for batch in steps)


def test_a_step_depends_on_nothing_but_its_arguments() -> None:
    late = step_rows(num_rows=50, global_batch_size=8, seed=3, step=100)
    for step in range(30):
        step_rows(num_rows=50, global_batch_size=8, seed=4, step=step)
    assert np.array_equal(late, step_rows(num_rows=50, global_batch_size=8, seed=3, step=100))


def test_epochs_and_seeds_shuffle_anew() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return step_rows(num_rows=64, global_batch_size=64, seed=seed, step=number).tolist()

    assert len({tuple(epoch(seed, number)) for seed in range(3) for number in range(3)}) == 9
    assert sorted(epoch(0, 5)) == list(range(64))


def test_the_order_is_pinned() -> None:
    """Resuming a run of an earlier version takes the same rows: these numbers must never change."""
    assert step_rows(num_rows=10, global_batch_size=5, seed=0, step=3).tolist() == [9, 5, 3, 4, 8]


def test_a_caller_may_write_into_its_rows() -> None:
    rows = step_rows(num_rows=10, global_batch_size=5, seed=0, step=0)
    before = rows.copy()
    rows[:] = -1
    assert np.array_equal(before, step_rows(num_rows=10, global_batch_size=5, seed=0, step=0))


def test_fewer_rows_than_a_batch_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"64 rows a step, 10 rows.*--set train\.global_batch_size=10"):
        steps_per_epoch(num_rows=10, global_batch_size=64)


def test_caption_choices_are_in_range_even_and_keyed() -> None:
    keys = [row_key(f"a.tar#{n}") for n in range(2000)]
    choices = np.array([[caption_choice(7, epoch, key, 5) for key in keys] for epoch in range(2)])
    assert set(choices.ravel().tolist()) == {0, 1, 2, 3, 4}
    counts = np.bincount(choices[0], minlength=5)
    assert np.abs(counts - 400).max() < 80  # about 4.5 standard deviations
    assert 0.15 < (choices[0] == choices[1]).mean() < 0.25
    assert caption_choice(7, 0, keys[0], 1) == 0
    assert choices[0][0] == caption_choice(7, 0, keys[0], 5)


def test_row_keys_are_stable_and_signed_64_bit() -> None:
    assert row_key("a") == -8721251224300181508
    keys = np.array([row_key(str(n)) for n in range(1000)], dtype=np.int64)
    assert len(np.unique(keys)) == 1000 and (keys < 0).any() and (keys > 0).any()
