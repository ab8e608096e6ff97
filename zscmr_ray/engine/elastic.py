"""As many ranks as there are: which counts can share a global batch, and a process group without the surplus.

Ray Train starts an elastic worker group with whatever the cluster has between `train.min_workers` and
`train.num_workers`; a batch is divided by some of these counts only. Ranks beyond the largest such count leave the group
and idle until the next change. What it is not: the division of a state (engine/deepspeed.py) or of rows (batching.py).
"""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from zscmr_ray.engine.collectives import rank, world_size
from zscmr_ray.errors import ConfigError


def usable_workers(num_workers: int, *, global_batch_size: int, micro_batch_size: int | None = None) -> int:
    """Return the largest number of ranks, at most `num_workers`, that come out even; 0 where none does.

    >>> usable_workers(3, global_batch_size=64)
    2
    """
    unit = micro_batch_size or 1
    counts = range(num_workers, 0, -1)
    return next((count for count in counts if global_batch_size % (count * unit) == 0), 0)


def check_range(
    min_workers: int, num_workers: int, *, global_batch_size: int, micro_batch_size: int | None = None
) -> None:
    """Raise ConfigError for a range of workers that is empty, or whose smaller end the batch cannot be divided by."""
    if min_workers > num_workers:
        raise ConfigError(
            "train.min_workers is larger than train.num_workers",
            got=f"{min_workers} > {num_workers}",
            expected="at most train.num_workers, the number that is trained with when all are there",
            remedy=f"--set train.min_workers={num_workers}",
        )
    usable = usable_workers(
        min_workers, global_batch_size=global_batch_size, micro_batch_size=micro_batch_size
    )
    if usable != min_workers:
        raise ConfigError(
            f"train.global_batch_size={global_batch_size} is not divided by train.min_workers={min_workers}",
            got=f"{global_batch_size} rows for {min_workers} workers",
            expected="a divisor of the batch",
            remedy=f"--set train.min_workers={usable or 1}",
        )


def leave_surplus_out(num_ranks: int) -> bool:
    """Go on with a process group of the first `num_ranks` ranks; returns whether this rank is among them.

    Every rank must call it, before anything else has used the group.
    """
    if num_ranks >= world_size():
        return True
    own, backend = rank(), dist.get_backend()
    # Rank 0 serves the store for as long as it lives, whatever becomes of the group.
    store = PrefixStore("zscmr-elastic", _get_default_store())
    dist.destroy_process_group()
    if own >= num_ranks:
        return False
    dist.init_process_group(backend, store=store, rank=own, world_size=num_ranks)
    return True
