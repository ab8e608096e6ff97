"""Run a function on several ranks: fresh processes, one gloo group, results back in rank order."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def run_ranks(function: Callable[..., Any], num_ranks: int, *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` (importable, with a picklable result) on every rank; an exception there is one here."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (num_ranks, folder, function, arguments), nprocs=num_ranks)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(num_ranks)]


def _rank(
    rank: int, num_ranks: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=num_ranks)
    torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
