"""Division of the global batch, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from zscmr_ray.engine.batching import rank_slice, rows_per_rank
from zscmr_ray.errors import ConfigError


def test_even_shares() -> None:
    assert rows_per_rank(64, 1) == 64
    assert rows_per_rank(64, 4) == 16
    assert rows_per_rank(64, 4, micro_batch_size=16) == 16


@pytest.mark.parametrize(
    "workers, micro, unit, choices", [(3, None, 3, "99 or 102"), (2, 16, 32, "96 or 128")]
)
def test_uneven_shares_are_refused_with_the_nearest_choices(
    workers: int, micro: int | None, unit: int, choices: str
) -> None:
    with pytest.raises(ConfigError, match=r"train\.global_batch_size=100 is not divisible by") as error:
        rows_per_rank(100, workers, micro_batch_size=micro)
    assert choices in str(error.value)
    assert f"a multiple of {unit}" in str(error.value)


def test_fewer_rows_than_workers_names_one_choice() -> None:
    with pytest.raises(ConfigError, match="use 8:"):
        rows_per_rank(4, 8)


def test_micro_batches_divide_the_share() -> None:
    assert rows_per_rank(64, 2, micro_batch_size=8) == 32
    with pytest.raises(ConfigError, match="2 workers x micro batch 12 = 24; got"):
        rows_per_rank(64, 2, micro_batch_size=12)


def test_slices_are_the_whole_batch_in_order() -> None:
    rows = np.arange(12)[::-1].copy()
    parts = [rank_slice(rows, rank, 3) for rank in range(3)]
    assert np.array_equal(np.concatenate(parts), rows)
