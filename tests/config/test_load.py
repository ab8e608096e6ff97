"""Precedence, overrides and every way to be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from zscmr_ray.config import Config, ServeSection, TrainSection
from zscmr_ray.config.base import Section, affects_of
from zscmr_ray.config.explain import explain, json_schema, reference_markdown
from zscmr_ray.config.load import all_keys, load_config
from zscmr_ray.errors import ConfigError
from zscmr_ray.recipes import RECIPES, recipe_config

ROOT = Path(__file__).parents[2]


def _sections(section: type[Section] = Config) -> list[type[Section]]:
    kinds = [info.annotation for info in section.model_fields.values()]
    inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
    return [section, *(found for kind in inner for found in _sections(kind))]


def test_every_field_says_what_it_affects_and_means() -> None:
    for section in _sections():
        for name, info in section.model_fields.items():
            assert affects_of(info) in {"output", "speed", "place", "section"}, f"{section.__name__}.{name}"
            assert info.description, f"{section.__name__}.{name}"


def test_precedence_default_recipe_yaml_set(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train: {global_batch_size: 32, seed: 5}\n")
    recipe = load_config(recipe="fgan_paper")
    assert recipe.config.train.global_batch_size == 16
    assert recipe.sources["optim.lr"] == "recipe fgan_paper"
    loaded = load_config(file, recipe="fgan_paper", overrides=["train.seed=7"])
    assert loaded.config.train.global_batch_size == 32
    assert loaded.config.train.seed == 7
    assert loaded.sources["train.seed"] == "--set"
    assert loaded.sources["train.global_batch_size"] == str(file)


def test_override_values_are_yaml() -> None:
    config = load_config(
        overrides=["optim.lr=1e-3", "split.unseen_classes=[a, b]", "data.columns.id=null"]
    ).config
    assert config.optim.lr == pytest.approx(1e-3)
    assert config.split.unseen_classes == ("a", "b")
    assert config.data.columns.id is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.imput_uri=x", "nearest: data.input_uri"),
        ("train.lr=1", "nearest: optim.lr"),
        ("optim.lr=-1", "greater than 0"),
        ("optim.lr=fast", "number"),
        ("nonsense", "section.key=value"),
        ("split.kind=odd", "even_odd"),
        ("train.gradient_accumulation_steps=4", "each micro batch would see only itself"),
    ],
)
def test_wrong_overrides_are_said(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(overrides=[override])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {width: 8}\n", "does not belong"),
        ("daat: {input_uri: x}\n", "unknown configuration key"),
        ("- a\n", "sections"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_wrong_files_are_said(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(file)


def test_missing_file_and_recipe() -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config("nowhere.yaml")
    with pytest.raises(ConfigError, match="unknown recipe"):
        load_config(recipe="fgam")


def test_all_recipes_build() -> None:
    for name in [*RECIPES, *(f"fgan_as_released:{defect}" for defect in range(1, 13))]:
        assert recipe_config(name).recipe == name


def test_worker_counts_and_places_stay_out_of_the_hash() -> None:
    a = load_config(overrides=["preprocess.num_encoders=1", "data.run_uri=a", "train.num_workers=1"]).config
    b = load_config(overrides=["preprocess.num_encoders=4", "data.run_uri=b", "train.num_workers=2"]).config
    c = load_config(overrides=["preprocess.region_grid=4"]).config
    sections = ("data", "preprocess", "train")
    assert a.stage_config(*sections) == b.stage_config(*sections)
    assert a.stage_config("preprocess") != c.stage_config("preprocess")


def test_the_packaged_yaml_is_valid_and_the_generated_pages_are_current() -> None:
    load_config(ROOT / "ray_config.yaml")
    assert (ROOT / "docs" / "config.md").read_text() == reference_markdown(), "run `make docs`"
    assert (ROOT / "docs" / "ray_config.schema.json").read_text() == json_schema() + "\n", "run `make docs`"


def test_explain_one_a_section_or_all() -> None:
    loaded = load_config()
    assert [row.key for row in explain(loaded, "optim.lr")] == ["optim.lr"]
    assert all(row.key.startswith("serve.") for row in explain(loaded, "serve"))
    assert [row.key for row in explain(loaded)] == list(all_keys())
    with pytest.raises(ConfigError, match="no such setting"):
        explain(loaded, "speed")


def test_open_bind_needs_a_key_name() -> None:
    with pytest.raises(ConfigError, match="not loopback"):
        ServeSection(host="0.0.0.0", api_key_env="")


@pytest.mark.parametrize("train", [{}, {"use_gpu": True}, {"zero_stage": 2}])
def test_offload_is_for_gpus_and_divided_state(train: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="moves ZeRO's state from a GPU"):
        TrainSection(offload="cpu", **train)  # type: ignore[arg-type]
    assert TrainSection(offload="cpu", use_gpu=True, zero_stage=2).offload == "cpu"
