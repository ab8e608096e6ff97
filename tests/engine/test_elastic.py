"""Which numbers of workers share a batch, and a process group that leaves the surplus out."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.engine.rank_process import run_ranks
from zscmr_ray.engine.collectives import gather_values, rank, world_size
from zscmr_ray.engine.elastic import check_range, leave_surplus_out, usable_workers
from zscmr_ray.errors import ConfigError


@pytest.mark.parametrize(
    "num_workers, batch, micro, expected",
    [(3, 64, None, 2), (4, 64, 16, 4), (8, 64, 16, 4), (7, 48, None, 6), (1, 48, 5, 0)],
)
def test_usable_workers(num_workers: int, batch: int, micro: int | None, expected: int) -> None:
    assert usable_workers(num_workers, global_batch_size=batch, micro_batch_size=micro) == expected


def test_ranges_that_cannot_train_are_refused() -> None:
    check_range(1, 3, global_batch_size=64)
    with pytest.raises(ConfigError, match=r"min_workers is larger than train.num_workers"):
        check_range(3, 2, global_batch_size=64)
    with pytest.raises(ConfigError, match=r"not divided by train.min_workers=3.*--set train.min_workers=2"):
        check_range(3, 4, global_batch_size=64)


def seen_by_a_rank() -> list[object]:
    if not leave_surplus_out(2):
        # What the test's own harness needs of a rank that is left out.
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        return ["left out"]
    total = torch.ones(1)
    dist.all_reduce(total)
    return [rank(), world_size(), gather_values(rank()), float(total)]


def test_surplus_ranks_leave_and_the_others_go_on() -> None:
    assert run_ranks(seen_by_a_rank, 3) == [[0, 2, [0, 1], 2.0], [1, 2, [0, 1], 2.0], ["left out"]]
