"""A step is a function of its number: order, captions, noise, ranks; and what stops it."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.engine.rank_process import run_ranks
from tests.pairs_run import (
    IMAGE_CHANNELS,
    TEACHER_CLASSES,
    TOKEN_CHANNELS,
    PairsSpec,
    make_tables,
    tiny_config,
)
from zscmr_ray.config import Config
from zscmr_ray.data.order import step_rows
from zscmr_ray.data.pairs import PairFeatures, load_pair_features
from zscmr_ray.engine.bare import BareEngine
from zscmr_ray.engine.base import as_floats, model_architecture
from zscmr_ray.engine.collectives import rank, world_size
from zscmr_ray.engine.deepspeed import DeepSpeedEngine, engine_config
from zscmr_ray.engine.step import AlignmentStep, StepSource
from zscmr_ray.errors import ConfigError, TrainingError
from zscmr_ray.models.build import build_model

BATCH = 8


def load_features(spec: PairsSpec | None = None) -> PairFeatures:
    return load_pair_features(make_tables(spec), num_regions=4, token_channels=TOKEN_CHANNELS)


def make_source(features: PairFeatures | None = None, **options: object) -> StepSource:
    return StepSource(features or load_features(), global_batch_size=BATCH, seed=3, **options)  # type: ignore[arg-type]


def make_step(config: Config | None = None) -> AlignmentStep:
    config = config or tiny_config("unused")
    architecture = model_architecture(
        config, image_channels=IMAGE_CHANNELS, text_channels=TOKEN_CHANNELS, num_classes=TEACHER_CLASSES
    )
    train = config.train
    return AlignmentStep(
        build_model(architecture, seed=1), precision=train.precision, micro_batch_size=train.micro_batch_size
    )


def relabelled(features: PairFeatures) -> PairFeatures:
    """The first half of step 0 shares a class, the second has none in common: rank 1 has no weak positive."""
    order = step_rows(num_rows=len(features), global_batch_size=BATCH, seed=3, step=0)
    for place, row in enumerate(order):
        features.labels[row] = ("shared",) if place < BATCH // 2 else (f"own {place}",)
    return features


def test_inputs_repeat_and_do_not_depend_on_earlier_steps() -> None:
    one, other = make_source(), make_source()
    for step in range(5):
        other.inputs(step)
    assert torch.equal(one.inputs(5).regions_BRD, other.inputs(5).regions_BRD)
    assert one.inputs(5).ids_G == other.inputs(5).ids_G != one.inputs(6).ids_G


def test_captions_change_between_epochs() -> None:
    source = make_source()
    shown: dict[str, set[float]] = {}
    for step in range(12 * source.steps_per_epoch):
        inputs = source.inputs(step)
        for name, tokens in zip(inputs.ids_G, inputs.tokens_BLD, strict=True):
            shown.setdefault(name, set()).add(round(float(tokens.sum()), 3))
    assert {len(values) for values in shown.values()} == {2}


def test_ranks_share_the_batch() -> None:
    whole = make_source().inputs(2)
    parts = [make_source(rank=number, num_workers=2).inputs(2) for number in range(2)]
    assert torch.equal(torch.cat([part.regions_BRD for part in parts]), whole.regions_BRD)
    assert all(part.ids_G == whole.ids_G for part in parts)
    assert all(torch.equal(part.relations.weak_BB, whole.relations.weak_BB) for part in parts)


def test_ranks_share_a_class_balanced_batch() -> None:
    whole = make_source(classes_per_batch=4).inputs(3)
    parts = [make_source(rank=n, num_workers=2, classes_per_batch=4).inputs(3) for n in range(2)]
    assert torch.equal(torch.cat([part.regions_BRD for part in parts]), whole.regions_BRD)
    assert whole.relations.weak_BB.sum(dim=1).tolist() == [1] * BATCH


def test_a_batch_larger_than_the_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="larger than the training set"):
        StepSource(load_features(), global_batch_size=1000, seed=0)
    with pytest.raises(ConfigError, match="not divisible"):
        make_source(num_workers=3)


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), float("-inf")])
def test_features_that_are_not_finite_stop_with_the_step_and_the_rows(fault: float) -> None:
    features = load_features(PairsSpec(not_finite=range(120), fault=fault))
    source, step = make_source(features), make_step()
    engine = BareEngine(step, optim=tiny_config("unused").optim, total_steps=10)
    before = engine.weights()
    with pytest.raises(TrainingError, match="loss is nan at step 4") as error:
        engine.update(source.inputs(4))
    assert all(name in str(error.value) for name in source.inputs(4).ids_G)
    assert all(torch.equal(value, before[name]) for name, value in engine.weights().items())


def gradients(has_odd_rank: bool) -> dict[str, Tensor]:
    return gradients_of(None, relabelled(load_features()) if has_odd_rank else load_features())


def gradients_of(config: Config | None, features: PairFeatures | None = None) -> dict[str, Tensor]:
    step = make_step(config).train()
    step(make_source(features, rank=rank(), num_workers=world_size()).inputs(0))["total"].backward()
    found = {}
    for name, parameter in step.named_parameters():
        if world_size() > 1:
            dist.all_reduce(parameter.grad)
        found[name] = parameter.grad
    return found


def both_gradients() -> list[dict[str, Tensor]]:
    return [gradients(has_odd_rank) for has_odd_rank in (False, True)]


def parts_across_ranks() -> list[dict[str, float]]:
    """The loss parts of two batches: ranks of one class each, and ranks of the same four classes."""
    features, found = load_features(), []
    order = step_rows(num_rows=len(features), global_batch_size=BATCH, seed=3, step=0)
    for class_of in (lambda place: place // 4, lambda place: place % 4):
        for place, row in enumerate(order):
            features.labels[row] = (f"class {class_of(place)}",)
        inputs = make_source(features, rank=rank(), num_workers=world_size()).inputs(0)
        found.append(as_floats(make_step().train()(inputs)))
    return found


def not_finite_message() -> str:
    """What an update says of a batch whose last row, of the last rank, is not finite."""
    order = step_rows(num_rows=120, global_batch_size=BATCH, seed=3, step=0)
    source = make_source(
        load_features(PairsSpec(not_finite=[int(order[-1])])), rank=rank(), num_workers=world_size()
    )
    with pytest.raises(TrainingError) as error:
        BareEngine(make_step(), optim=tiny_config("unused").optim, total_steps=10).update(source.inputs(0))
    return str(error.value)


def rank_results() -> tuple[list[dict[str, Tensor]], list[dict[str, float]], str]:
    return both_gradients(), parts_across_ranks(), not_finite_message()


@pytest.fixture(scope="module")
def two_ranks() -> list[tuple[list[dict[str, Tensor]], list[dict[str, float]], str]]:
    return run_ranks(rank_results, 2)


def test_summed_gradients_of_two_ranks_are_the_single_process_s(two_ranks: Any) -> None:
    """Also when one rank has no weak positive."""
    single = both_gradients()
    for found, _, _ in two_ranks:
        for case, expected in zip(found, single, strict=True):
            assert case.keys() == expected.keys()
            for name, gradient in expected.items():
                assert torch.allclose(case[name], gradient, rtol=1e-4, atol=1e-6), name


def test_negatives_and_weak_positives_are_those_of_all_ranks(two_ranks: Any) -> None:
    """Every negative of the first batch, and every weak positive of the second, is on the other rank."""
    single = parts_across_ranks()
    assert single[0]["num_negative"] == single[1]["num_weak"] == BATCH
    for _, found, _ in two_ranks:
        for case, expected in zip(found, single, strict=True):
            assert case == pytest.approx(expected, abs=1e-5)


def test_every_rank_names_the_row_that_is_not_finite(two_ranks: Any) -> None:
    expected = not_finite_message()
    assert "at step 0" in expected and expected.count("shard#") == BATCH + 1
    assert [message for _, _, message in two_ranks] == [expected] * 2


def losses_of(engine_name: str, config: Config, steps: int) -> tuple[list[float], dict[str, Tensor]]:
    os.environ["LOCAL_RANK"] = str(rank())
    step, total = make_step(config), steps
    if engine_name == "deepspeed":
        lay_by_columns(step)
    engine = (
        BareEngine(step, optim=config.optim, total_steps=total)
        if engine_name == "bare"
        else DeepSpeedEngine(step, config=config, total_steps=total)
    )
    source = make_source(relabelled(load_features()), rank=rank(), num_workers=world_size())
    return [engine.update(source.inputs(number))["total"] for number in range(steps)], engine.weights()


def lay_by_columns(step: AlignmentStep) -> None:
    """As a backbone may: the kernels of a convolution lie by channels."""
    for parameter in step.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.t().contiguous().t()


def test_offload_is_deepspeed_s_own_with_torch_s_optimizer() -> None:
    """As configuration only: no GPU has run it."""
    for stage, parts in ((2, {"offload_optimizer"}), (3, {"offload_optimizer", "offload_param"})):
        train = {"zero_stage": stage, "use_gpu": True, "offload": "cpu"}
        found = engine_config(tiny_config("unused", train=train), 1)
        assert found["zero_optimization"].keys() == {"stage"} | parts
        assert found["zero_force_ds_cpu_optimizer"] is False
    assert engine_config(tiny_config("unused"), 1)["zero_optimization"] == {"stage": 0}


def case_of(zero_stage: int, precision: str, micro_batch_size: int | None = None) -> Config:
    train = {"zero_stage": zero_stage, "precision": precision, "micro_batch_size": micro_batch_size}
    return tiny_config("unused", train=train)


SHORT = ((0, "fp32", None), (1, "fp32", 2), (2, "fp32", 2), (3, "fp32", 2), (0, "bf16", None))
WHOLE = tuple((stage, precision, None) for stage in range(4) for precision in ("fp32", "bf16"))


def deepspeed_losses(cases: tuple[Any, ...], steps: int) -> list[tuple[list[float], dict[str, Tensor]]]:
    return [losses_of("deepspeed", case_of(*case), steps) for case in cases]


@pytest.mark.parametrize(
    "num_ranks, cases, steps",
    [
        (1, SHORT, 20),
        (2, SHORT, 20),
        pytest.param(1, WHOLE, 50, marks=pytest.mark.long),
        pytest.param(2, WHOLE, 50, marks=pytest.mark.long),
    ],
)
def test_deepspeed_follows_the_bare_loop(num_ranks: int, cases: tuple[Any, ...], steps: int) -> None:
    """In whole shares and in micro batches."""
    expected = {precision: losses_of("bare", case_of(0, precision), steps) for precision in ("fp32", "bf16")}
    for results in run_ranks(deepspeed_losses, num_ranks, cases, steps):
        for case, (found, weights) in zip(cases, results, strict=True):
            tolerance = 1e-4 if case[1] == "fp32" else 2e-2
            assert found == pytest.approx(expected[case[1]][0], abs=tolerance), case
            for name, value in expected[case[1]][1].items():
                assert torch.allclose(weights[name], value, atol=10 * tolerance), (case, name)
