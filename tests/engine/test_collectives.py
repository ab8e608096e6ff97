"""Gathering rows: values, and a gradient that is this rank's own slice."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.engine.rank_process import run_ranks
from zscmr_ray.engine.collectives import (
    broadcast_value,
    choose_backend,
    gather_rows,
    gather_values,
    rank,
    world_size,
)


def test_backend() -> None:
    assert choose_backend(use_gpu=True) == "nccl"
    assert choose_backend(use_gpu=False) == "gloo"


def test_one_process_is_the_identity() -> None:
    value = torch.randn(3, 2)
    assert gather_rows({"a": value})["a"] is value
    assert broadcast_value({"x": 1}) == {"x": 1}
    assert gather_values(4) == [4]
    assert world_size() == 1


def rows(number: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {
        "matrix": torch.randn(2, 3, generator=generator),
        "vector": torch.randn(2, generator=generator),
        "cube": torch.randn(2, 2, 2, generator=generator),
    }


def loss(gathered: dict[str, Tensor]) -> Tensor:
    """Every row meets every row: the gradient of one depends on all."""
    matrix_GD = gathered["matrix"]
    mixed = (matrix_GD @ matrix_GD.T).tanh().sum() + (gathered["vector"][:, None] * matrix_GD).pow(2).sum()
    return mixed + gathered["cube"].flatten(1).sum(1).pow(3).sum()


def gathered_gradients() -> tuple[dict[str, Tensor], dict[str, Tensor], object, object]:
    own = {name: value.requires_grad_() for name, value in rows(rank()).items()}
    gathered = gather_rows(own)
    loss(gathered).backward()
    plain = {name: value.detach() for name, value in gathered.items()}
    return (
        plain,
        {name: value.grad for name, value in own.items()},
        gather_values(rank()),
        broadcast_value(rank()),
    )


def test_two_ranks_give_the_single_process_s_values_and_gradients() -> None:
    whole = {
        name: torch.cat([rows(0)[name], rows(1)[name]]).requires_grad_()
        for name in ("matrix", "vector", "cube")
    }
    loss(whole).backward()
    results = run_ranks(gathered_gradients, 2)
    for number, (values, gradients, ranks, sent) in enumerate(results):
        assert ranks == [0, 1] and sent == 0
        for name, value in whole.items():
            assert torch.equal(values[name], value)
            assert torch.allclose(gradients[name], value.grad[2 * number : 2 * number + 2], atol=1e-6)
