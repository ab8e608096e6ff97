"""A whole training without Ray: selection, early stopping, refit, and going on after a stop anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pairs_run import (
    IMAGE_CHANNELS,
    TEACHER_CLASSES,
    TOKEN_CHANNELS,
    PairsSpec,
    make_tables,
    tiny_config,
)
from zscmr_ray.config import Config
from zscmr_ray.data.pairs import PairFeatures, load_pair_features
from zscmr_ray.data.splits import ClassSplit, count_classes, make_class_split
from zscmr_ray.engine.bare import BareEngine
from zscmr_ray.engine.base import model_architecture
from zscmr_ray.engine.resume import COMPLETE, ResumePoint, newest_state
from zscmr_ray.engine.run import Outcome, TrainingRun, held_out_rows, trained_rows
from zscmr_ray.engine.step import AlignmentStep, StepInputs
from zscmr_ray.errors import ConfigError, DataError, TrainingError
from zscmr_ray.storage import Store


class Killed(Exception):
    """Stands for SIGKILL: nothing catches it."""


class MortalEngine(BareEngine):
    """A bare engine that dies before a given update."""

    dies_at: int | None = None
    updates = 0

    def update(self, inputs: StepInputs) -> dict[str, float]:
        if MortalEngine.updates == MortalEngine.dies_at:
            raise Killed
        MortalEngine.updates += 1
        return super().update(inputs)


@pytest.fixture
def dies_at() -> Callable[[int | None], None]:
    def arm(number: int | None) -> None:
        MortalEngine.dies_at, MortalEngine.updates = number, 0

    arm(None)
    return arm


def load(spec: PairsSpec | None = None) -> PairFeatures:
    return load_pair_features(make_tables(spec), num_regions=4, token_channels=TOKEN_CHANNELS)


def split_of(features: PairFeatures, kind: str = "even_odd", **options: object) -> ClassSplit:
    return make_class_split(count_classes(features.labels), kind, **options)  # type: ignore[arg-type]


def make_run(
    store: Path | str, config: Config, features: PairFeatures | None = None, split: ClassSplit | None = None
) -> TrainingRun:
    features = features if features is not None else load()
    return TrainingRun(
        config,
        split or split_of(features),
        features,
        architecture=architecture_of(config),
        store=Store(store),
        make_engine=lambda step, total: MortalEngine(step, optim=config.optim, total_steps=total),
    )


def architecture_of(config: Config) -> dict[str, object]:
    return model_architecture(
        config, image_channels=IMAGE_CHANNELS, text_channels=TOKEN_CHANNELS, num_classes=TEACHER_CLASSES
    )


def newest(folder: Path, zero_stage: int = 0) -> ResumePoint | None:
    return newest_state(
        Store(folder), zero_stage=zero_stage, architecture=architecture_of(tiny_config("unused"))
    )


def assert_same(one: Outcome, other: Outcome) -> None:
    assert one.selection == other.selection
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


REFIT = tiny_config("unused", train={"refit": True, "checkpoint_every_steps": 3}, optim={"max_epochs": 5})


def test_trained_and_held_out_rows_never_meet_unseen_classes() -> None:
    features = load()
    split = split_of(features)
    for refit in (False, True):
        rows = trained_rows(features, split, refit=refit)
        labels = {name for row in rows for name in features.labels[row]}
        assert labels == set(split.trained(refit=refit))
        assert set(features.partition[rows]) == {"train"}
    held_out = held_out_rows(features, split)
    assert held_out is not None
    assert {name for row in held_out for name in features.labels[row]} == set(split.pseudo_unseen)


@pytest.mark.usefixtures("dies_at")
def test_outcome_is_the_best_epoch_s(tmp_path: Path) -> None:
    outcome = make_run(tmp_path, tiny_config("unused")).run()
    assert outcome.selection["rows"] == "pseudo-unseen"
    assert 0 < outcome.selection["steps"] <= 8
    assert outcome.label_weight == outcome.selection["label_weight"]
    assert (tmp_path / "metrics.jsonl").exists()


@pytest.mark.usefixtures("dies_at")
def test_patience_stops_early(tmp_path: Path) -> None:
    config = tiny_config("unused", optim={"max_epochs": 40, "lr": 1e-9, "patience_epochs": 2})
    run = make_run(tmp_path, config)
    run.run()
    # Weights that do not move score what the first epoch scored: never better.
    assert run.state.best_step == 2
    assert run.state.step == 2 + 2 * 2


@pytest.mark.parametrize(
    "number, every, phase, redone",
    [(4, 3, "select", 1), (9, 3, "select", 0), (11, 3, "select", 2), (11, 1, "refit", 0)],
)
def test_a_run_killed_in_either_phase_ends_with_the_same_weights(
    tmp_path: Path, dies_at: Callable[[int | None], None], number: int, every: int, phase: str, redone: int
) -> None:
    """At most one interval is done again: ten steps of selection, two of the refit."""
    config = tiny_config(
        "unused", train={"refit": True, "checkpoint_every_steps": every}, optim={"max_epochs": 5}
    )
    undisturbed = make_run(tmp_path / "whole", config).run()
    total = MortalEngine.updates
    dies_at(number)
    with pytest.raises(Killed):
        make_run(tmp_path / "killed", config).run()
    point = newest(tmp_path / "killed")
    assert point is not None and point.run["phase"] == phase
    dies_at(None)
    assert_same(make_run(tmp_path / "killed", config).run(), undisturbed)
    assert MortalEngine.updates == total - number + redone


@pytest.mark.parametrize("damage", ["torn", "corrupt"])
def test_the_newest_whole_state_is_found(
    tmp_path: Path, dies_at: Callable[[int | None], None], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dies_at(8)
    with pytest.raises(Killed):
        make_run(tmp_path, REFIT).run()
    states = sorted((tmp_path / "engine").iterdir())
    assert [state.name for state in states] == ["step-00000003", "step-00000006"]
    if damage == "torn":
        (states[1] / COMPLETE).unlink()
    else:
        (states[1] / "ranks" / "bare.pt").write_bytes(b"half")
    point = newest(tmp_path)
    assert point is not None and point.name == "step-00000003"
    assert "passing over engine/step-00000006" in capsys.readouterr().err


@pytest.mark.usefixtures("dies_at")
@pytest.mark.parametrize("step, newest_whole", [(6, "step-00000003"), (9, "step-00000006")])
def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, newest_whole: str
) -> None:
    """The loss was finite, the update was not: found by the save after step 6 and after step 9."""
    update = BareEngine.update

    def spoil(engine: BareEngine, inputs: StepInputs) -> dict[str, float]:
        parts = update(engine, inputs)
        if inputs.step == step - 1:
            next(engine.step_module.parameters()).data.flatten()[0] = torch.inf
        return parts

    monkeypatch.setattr(BareEngine, "update", spoil)
    with pytest.raises(TrainingError, match=r"the weights are no longer finite.*lower optim.lr"):
        make_run(tmp_path, REFIT).run()
    assert sorted(path.name for path in (tmp_path / "engine").iterdir())[-1] == newest_whole
    point = newest(tmp_path)
    assert point is not None and point.name == newest_whole


def test_another_zero_stage_is_refused(tmp_path: Path, dies_at: Callable[[int | None], None]) -> None:
    dies_at(5)
    with pytest.raises(Killed):
        make_run(tmp_path, REFIT).run()
    with pytest.raises(ConfigError, match="divided its optimiser state"):
        newest(tmp_path, zero_stage=2)


@pytest.mark.usefixtures("dies_at")
def test_unlabelled_pairs_validate_by_instance(tmp_path: Path) -> None:
    features = load(PairsSpec(labelled=False))
    outcome = make_run(tmp_path, REFIT, features, split_of(features, "none")).run()
    assert outcome.selection["rows"] == "val"
    assert not outcome.selection["refit"]
    assert outcome.selection["trained_rows"] == int((features.partition == "train").sum())


@pytest.mark.usefixtures("dies_at")
def test_nothing_held_out_keeps_the_last_step(tmp_path: Path) -> None:
    features = load()
    split = split_of(features, pseudo_unseen_fraction=0.0)
    outcome = make_run(tmp_path, tiny_config("unused"), features, split).run()
    assert outcome.selection["rows"].startswith("none")
    assert outcome.selection["steps"] == 4 * (36 // 8)


def test_no_validation_rows_is_an_error_before_training(tmp_path: Path) -> None:
    features = load(PairsSpec(labelled=False))
    features = features.select(np.flatnonzero(features.partition == "train"))
    with pytest.raises(DataError, match="no rows to validate on"):
        make_run(tmp_path, REFIT, features, split_of(features, "none"))


def test_a_run_on_s3_goes_on_too(
    s3_bucket: str, tmp_path: Path, dies_at: Callable[[int | None], None]
) -> None:
    undisturbed = make_run(tmp_path, REFIT).run()
    dies_at(8)
    with pytest.raises(Killed):
        make_run(f"{s3_bucket}/checkpoint", REFIT).run()
    dies_at(None)
    assert_same(make_run(f"{s3_bucket}/checkpoint", REFIT).run(), undisturbed)
    keys = [info.key for info in Store(f"{s3_bucket}/checkpoint").list()]
    assert "metrics.jsonl" in keys and sum(key.startswith("tensorboard/events") for key in keys) == 2


def test_engine_contract_is_kept(tmp_path: Path) -> None:
    """What DeepSpeed's engine must do too: state saved and loaded gives the same next step."""
    run = make_run(tmp_path, REFIT)
    source = run._source(refit=False)
    one = run._engine(20, None)
    for step in range(3):
        one.update(source.inputs(step))
    one.save(tmp_path)
    other = run._engine(20, None)
    other.load(tmp_path, num_workers=1)
    assert one.update(source.inputs(3)) == other.update(source.inputs(3))
    assert isinstance(one, BareEngine) and isinstance(one.step_module, AlignmentStep)
