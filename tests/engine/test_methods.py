"""Every method in the engine: two ranks equal one, DeepSpeed's stages follow the bare loop, recipes train."""

from __future__ import annotations

import pytest
import torch

from tests.engine.rank_process import run_ranks
from tests.engine.test_step import gradients_of, losses_of
from tests.pairs_run import IMAGE_CHANNELS, TEACHER_CLASSES, TOKEN_CHANNELS, tiny_config
from zscmr_ray.config import Config
from zscmr_ray.engine.base import model_architecture
from zscmr_ray.models.build import METHODS, build_model
from zscmr_ray.recipes import RECIPES, recipe_config

NOISE = {"dropout": 0.2, "feature_noise": 0.2}
METHOD_SECTIONS: dict[str, dict[str, dict[str, object]]] = {
    "fgan": {},
    "imfa": {"model": {"method": "inn", "attention": "fused", "attention_width": 4, "fusion": "concat"}},
    "zs_inn_self": {"model": {"method": "inn", "attention": "self"}, "loss": {"contrast": "infonce"}},
    "supcon": {
        "model": {"method": "tower", **NOISE},
        "loss": {"contrast": "infonce", "same_class": "positive", "learned_temperature": True},
    },
}


def config_of(name: str, **train: object) -> Config:
    return tiny_config("unused", train=train, **METHOD_SECTIONS[name])


def all_gradients(micro_batch_size: int | None = None) -> list[dict[str, torch.Tensor]]:
    return [
        gradients_of(config_of(name, micro_batch_size=micro))
        for name in METHOD_SECTIONS
        for micro in (None, micro_batch_size)
    ]


def test_summed_gradients_of_two_ranks_are_the_single_process_s() -> None:
    """In whole shares and in micro batches."""
    single = all_gradients()
    for found in run_ranks(all_gradients, 2, 2):
        for case, expected in zip(found, single, strict=True):
            assert case.keys() == expected.keys()
            for name, gradient in expected.items():
                assert torch.allclose(case[name], gradient, rtol=1e-4, atol=1e-6), name


def deepspeed_losses() -> list[tuple[list[float], dict[str, torch.Tensor]]]:
    return [
        losses_of("deepspeed", config_of(name, zero_stage=stage), 8)
        for name in METHOD_SECTIONS
        for stage in (0, 3)
    ]


@pytest.mark.long
def test_deepspeed_follows_the_bare_loop() -> None:
    """ZeRO 3 too: parameters that a loss reads are read inside a module's own forward."""
    expected = [losses_of("bare", config_of(name), 8) for name in METHOD_SECTIONS for _ in (0, 3)]
    for results in run_ranks(deepspeed_losses, 2):
        for (found, weights), (bare, bare_weights) in zip(results, expected, strict=True):
            assert found == pytest.approx(bare, abs=1e-4)
            for name, value in bare_weights.items():
                assert torch.allclose(weights[name], value, atol=1e-3), name


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_s_model_reads_only_its_own_settings(name: str) -> None:
    config = recipe_config(name)
    architecture = model_architecture(
        config, image_channels=IMAGE_CHANNELS, text_channels=TOKEN_CHANNELS, num_classes=TEACHER_CLASSES
    )
    assert config.recipe == name
    assert architecture["method"] == config.model.method in METHODS
    narrow = {"width": 16, "latent": 8}
    small = architecture | {name: value for name, value in narrow.items() if name in architecture}
    found = build_model(small).architecture()
    # What no section sets (all of `best`) has the method's own defaults, and is written down with the rest.
    assert {name: found[name] for name in small} == small
    assert found.keys() == small.keys() or config.model.method == "best"
