"""Micro batches change memory and nothing else: the gradient is that of the whole batch, for every method and engine."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from tests.engine.rank_process import run_ranks
from tests.engine.test_methods import METHOD_SECTIONS, config_of
from tests.engine.test_step import gradients_of, losses_of, make_source, make_step

MICRO = 2


def test_gradients_are_the_whole_batch_s() -> None:
    """On two ranks too: tests/engine/test_methods.py."""
    for name in METHOD_SECTIONS:
        whole = gradients_of(config_of(name))
        found = gradients_of(config_of(name, micro_batch_size=MICRO))
        assert found.keys() == whole.keys()
        for parameter, gradient in whole.items():
            assert torch.allclose(found[parameter], gradient, rtol=1e-5, atol=1e-5), (name, parameter)


@pytest.mark.parametrize("name", ["fgan", "imfa", "zs_inn_self"])
def test_no_activations_are_held_between_forward_and_backward(name: str) -> None:
    """What autograd keeps in micro batches is what the loss reads of the outputs."""

    def held_bytes(micro_batch_size: int | None) -> int:
        step = make_step(config_of(name, micro_batch_size=micro_batch_size)).train()
        own = {parameter.untyped_storage().data_ptr() for parameter in step.parameters()}
        held: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            step(make_source().inputs(0))
        return sum(held.values())

    assert held_bytes(MICRO) < held_bytes(None) / 2


CASES = tuple(product(METHOD_SECTIONS, range(4)))


def micro_losses() -> list[tuple[list[float], dict[str, Tensor]]]:
    return [
        losses_of("deepspeed", config_of(name, zero_stage=stage, micro_batch_size=MICRO), 8)
        for name, stage in CASES
    ]


@pytest.mark.long
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_every_stage_of_deepspeed_takes_micro_batches(num_ranks: int) -> None:
    expected = {name: losses_of("bare", config_of(name), 8) for name in METHOD_SECTIONS}
    for results in run_ranks(micro_losses, num_ranks):
        for (name, stage), (found, weights) in zip(CASES, results, strict=True):
            assert found == pytest.approx(expected[name][0], abs=1e-5), (name, stage)
            for parameter, value in expected[name][1].items():
                assert torch.allclose(weights[parameter], value, atol=1e-3), (name, stage, parameter)
