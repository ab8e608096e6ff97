"""What ranks exchange: per-row outputs with their gradient, and small values. The identity in a single process.

Every rank computes the same loss of the same global batch, so the gradient of a gathered row is already whole on its
own rank: backward is a slice, without an all-reduce. Parameter gradients are then SUMMED over ranks by the engine.

Legend: B rows of this rank, G rows of the global batch (rank after rank), F packed features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn


def choose_backend(*, use_gpu: bool) -> Literal["nccl", "gloo"]:
    """Return the torch.distributed backend: NCCL between GPUs, gloo between CPUs.

    >>> choose_backend(use_gpu=False)
    'gloo'
    """
    return "nccl" if use_gpu else "gloo"


def world_size() -> int:
    """Return the number of ranks; 1 where torch.distributed is not set up."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank; 0 where torch.distributed is not set up."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier()


def broadcast_value(value: Any) -> Any:
    """Return rank 0's value (plain Python: numbers, strings, lists, dicts) on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_values(value: Any) -> list[Any]:
    """Return every rank's value (plain Python), in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each float32 tensor [B, ...] as the global batch's [G, ...], with a gradient for this rank's rows.

    Every rank must hold the same B (engine/batching.py). One collective for all tensors together.
    """
    if world_size() == 1:
        return dict(tensors)
    packed_BF = torch.cat(
        [
            value.float().flatten(1) if value.dim() > 1 else value.float()[:, None]
            for value in tensors.values()
        ],
        1,
    )
    gathered_GF: Tensor = _GatherRows.apply(packed_BF)  # type: ignore[no-untyped-call]
    widths = [value[0].numel() for value in tensors.values()]
    columns = torch.split(gathered_GF, widths, dim=1)
    return {
        name: part_GF.reshape(-1, *value.shape[1:])
        for (name, value), part_GF in zip(tensors.items(), columns, strict=True)
    }


def count_once(parameters: Iterable[nn.Parameter]) -> None:
    """Divide these parameters' gradients by the number of ranks, from now on.

    For what the loss of the global batch reads directly: every rank has the whole gradient, and the engine's sum over
    ranks would count it once a rank.
    """
    for parameter in parameters:
        parameter.register_hook(_divided)  # type: ignore[no-untyped-call]


def _divided(gradient: Tensor) -> Tensor:
    return gradient / world_size()


class _GatherRows(torch.autograd.Function):
    """all_gather forward, this rank's slice backward."""

    @staticmethod
    def forward(ctx: Any, packed_BF: Tensor) -> Tensor:
        ctx.num_rows = packed_BF.shape[0]
        parts = [torch.empty_like(packed_BF) for _ in range(world_size())]
        dist.all_gather(parts, packed_BF.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad_GF: Tensor) -> Tensor:
        start = rank() * ctx.num_rows
        return grad_GF[start : start + ctx.num_rows].contiguous()
