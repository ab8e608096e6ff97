"""The train stage on a real Ray: a checkpoint from pairs, the same from two workers, errors unwrapped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pairs_run import PairsSpec, tiny_config, write_pairs
from tests.stages.train_process import long_config, parts_of, trained_run
from zscmr_ray.claim import open_stage
from zscmr_ray.data.splits import make_class_split
from zscmr_ray.engine.bare import BareEngine
from zscmr_ray.engine.checkpoint import load_checkpoint
from zscmr_ray.engine.step import StepInputs
from zscmr_ray.errors import ConfigError, DataError, RefusedError, TrainingError
from zscmr_ray.manifest import StageKey
from zscmr_ray.models.versions import METHOD_VERSIONS
from zscmr_ray.stages.train import (
    SECTIONS,
    cause_of,
    check_cluster,
    finish,
    keep_split,
    plan_training,
    run_train,
)
from zscmr_ray.stages.train_loop import TrainJob, train_worker
from zscmr_ray.storage import Store

# Ray's own: a configuration class that warns of its defaults, sockets it closes late.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
CHECKPOINT = ("config.json", "meta.json", "model.safetensors", "split.json")


@pytest.fixture(scope="module")
def undisturbed(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.getbasetemp() / "trained")


@pytest.mark.ray
def test_the_checkpoint_is_whole_and_a_second_run_returns_at_once(undisturbed: Path) -> None:
    model, meta = load_checkpoint(Store(undisturbed / "checkpoint"))
    assert model.label_temperature == meta.label_temperature
    assert meta.split is not None and set(meta.split["pseudo_unseen"]) < set(meta.split["seen"])
    split = json.loads((undisturbed / "pairs" / "splits" / "even_odd-0.5-0.json").read_text())
    assert split == meta.split
    assert meta.preprocessing["crop_fraction"] == 1.0
    manifest = json.loads((undisturbed / "checkpoint" / "manifest.json").read_text())
    assert [part["name"] for part in manifest["parts"]] == sorted(CHECKPOINT)
    assert manifest["info"]["fingerprint"] == meta.fingerprint
    assert not [name for name in ("engine", "best") if (undisturbed / "checkpoint" / name).exists()]
    lines = [
        json.loads(line) for line in (undisturbed / "checkpoint" / "metrics.jsonl").read_text().splitlines()
    ]
    assert {"loss/total", "lr", "speed/samples_per_s", "speed/waiting_fraction"} <= lines[0].keys()
    assert any("validation/map" in line for line in lines)
    assert list((undisturbed / "checkpoint" / "tensorboard").glob("events*"))
    again = run_train(long_config(undisturbed))
    assert again.skipped and again.counts["steps"] == meta.selection["steps"]


@pytest.mark.ray
def test_other_settings_are_refused(undisturbed: Path) -> None:
    with pytest.raises(RefusedError, match=r"optim\.max_epochs: 150 -> 151"):
        run_train(long_config(undisturbed, num_epochs=151))


@pytest.mark.ray
def test_two_workers_train_what_the_bare_loop_trains(ray_local: None, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "two", train={"num_workers": 2})
    info = write_pairs(config).info
    run_train(config)
    two = load_checkpoint(Store(tmp_path / "two" / "checkpoint"))[0].state_dict()
    pairs, parts = Store(tmp_path / "two" / "pairs"), parts_of(tmp_path / "two")
    split, _ = plan_training(config, pairs, parts)
    train_worker(
        TrainJob(config, split, pairs, parts, info, Store(tmp_path / "bare")),
        make_engine=lambda step, total_steps: BareEngine(step, optim=config.optim, total_steps=total_steps),
    )
    bare = load_checkpoint(Store(tmp_path / "bare"))[0].state_dict()
    for name, value in bare.items():
        assert (two[name] - value).abs().max() < 1e-4, name


@pytest.mark.ray
def test_a_nan_loss_stops_with_the_step_and_the_rows(ray_local: None, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    write_pairs(config, PairsSpec(not_finite=range(120)))
    with pytest.raises(TrainingError, match="the loss is nan at step 0") as error:
        run_train(config)
    assert "shard#" in str(error.value)
    assert not (tmp_path / "checkpoint" / "manifest.json").exists()


def test_pairs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="preprocess is not complete"):
        run_train(tiny_config(tmp_path))


@pytest.mark.parametrize(
    "spec, sections, error, match",
    [
        (PairsSpec(num_classes=1), {}, DataError, "class"),
        (PairsSpec(labelled=False), {}, DataError, "class"),
        (PairsSpec(), {"split": {"min_items_per_class": 1000}}, DataError, "class"),
        (PairsSpec(), {"split": {"kind": "explicit"}}, ConfigError, "unseen"),
        (PairsSpec(), {"train": {"global_batch_size": 500}}, ConfigError, "larger than the training set"),
        (PairsSpec(), {"train": {"global_batch_size": 9, "num_workers": 2}}, ConfigError, "not divisible"),
        (PairsSpec(), {"train": {"micro_batch_size": 3}}, ConfigError, "x micro batch 3 = 3"),
        (PairsSpec(), {"train": {"classes_per_batch": 8}}, ConfigError, "batch cannot be filled"),
        (PairsSpec(), {"train": {"num_workers": 200}}, ConfigError, "not divisible by 200 workers"),
        (
            PairsSpec(),
            {"train": {"global_batch_size": 64, "num_workers": 64}},
            ConfigError,
            "more training workers than rows",
        ),
        (PairsSpec(), {"train": {"num_workers": 2, "min_workers": 3}}, ConfigError, "min_workers is larger"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_ray(
    tmp_path: Path,
    spec: PairsSpec,
    sections: dict[str, dict[str, object]],
    error: type[Exception],
    match: str,
) -> None:
    config = tiny_config(tmp_path, **sections)
    write_pairs(config, spec)
    with pytest.raises(error, match=match):
        run_train(config)
    assert not (tmp_path / "checkpoint").exists()


def test_a_directory_of_a_method_s_other_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, model={"method": "best"})
    fingerprint = write_pairs(config).fingerprint
    older = StageKey(stage="train", config=config.stage_config(*SECTIONS), input_fingerprint=fingerprint)
    Store(tmp_path / "checkpoint").write_json("_stage.json", older.model_dump())
    with pytest.raises(RefusedError, match="method_version: None -> 2"):
        monkeypatch.setitem(METHOD_VERSIONS, "best", 2)
        run_train(config)


class DyingEngine(BareEngine):
    """Dies in the middle of a training, after its first validations."""

    def update(self, inputs: StepInputs) -> dict[str, float]:
        if inputs.step == 9:
            raise KeyboardInterrupt
        return super().update(inputs)


def test_the_best_validated_weights_are_a_checkpoint_of_their_own(tmp_path: Path) -> None:
    """From the first validation on; kept where a refit goes beyond them."""
    config = tiny_config(tmp_path, train={"refit": True}, optim={"max_epochs": 8})
    info = write_pairs(config).info
    pairs, parts = Store(tmp_path / "pairs"), parts_of(tmp_path)
    split, counts = plan_training(config, pairs, parts)
    job = TrainJob(config, split, pairs, parts, info, Store(tmp_path / "checkpoint"))
    with pytest.raises(KeyboardInterrupt):
        train_worker(
            job, make_engine=lambda step, total: DyingEngine(step, optim=config.optim, total_steps=total)
        )
    best = load_checkpoint(Store(tmp_path / "checkpoint" / "best"))[1]
    assert 0 < best.selection["steps"] <= 9 and not best.selection["refit"]
    found = train_worker(
        job, make_engine=lambda step, total: BareEngine(step, optim=config.optim, total_steps=total)
    )
    best = load_checkpoint(Store(tmp_path / "checkpoint" / "best"))[1]
    final = load_checkpoint(Store(tmp_path / "checkpoint"))[1]
    assert best.selection["steps"] == final.selection["steps"] == found["selection"]["steps"]
    assert best.fingerprint != final.fingerprint and final.selection["refit"]
    with open_stage(job.checkpoint, StageKey(stage="train", config={}, input_fingerprint="")) as claim:
        finish(claim, found, counts)
    assert not (tmp_path / "checkpoint" / "engine").exists()
    assert (tmp_path / "checkpoint" / "best").exists()


def test_another_split_of_the_same_name_keeps_its_file(tmp_path: Path) -> None:
    counts = dict.fromkeys("abcd", 10)
    one = make_class_split(counts, "explicit", unseen=["a", "b"])
    other = make_class_split(counts, "explicit", unseen=["a", "c"])
    store = Store(str(tmp_path))
    keys = [keep_split(store, split) for split in (one, other, one, other)]
    assert keys[0] == keys[2] == "splits/explicit-0.5-0.json" and keys[1] == keys[3] != keys[0]
    assert [store.read_bytes(key).decode() for key in keys[:2]] == [one.to_json(), other.to_json()]


def test_counts_of_the_plan(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    write_pairs(config)
    split, counts = plan_training(config, Store(tmp_path / "pairs"), parts_of(tmp_path))
    assert counts["trained_rows"] == 9 * len(split.trained(refit=False))
    assert counts["pairs"] == 120 and counts["unseen_classes"] == 4


def test_more_workers_than_cpus_are_refused() -> None:
    config = tiny_config("unused", train={"num_workers": 4})
    check_cluster(config, {"CPU": 4.0})
    with pytest.raises(ConfigError, match="more training workers than CPUs"):
        check_cluster(config, {"CPU": 3.0})
    with pytest.raises(ConfigError, match="more training workers than GPUs"):
        check_cluster(tiny_config("unused", train={"use_gpu": True}), {"CPU": 3.0})


def test_worker_errors_are_unwrapped() -> None:
    class Wrapped(Exception):
        worker_failures: dict[int, BaseException]

    ours, foreign = Wrapped(), Wrapped()
    ours.worker_failures = {0: RuntimeError("x"), 1: DataError("torn part")}
    foreign.worker_failures = {0: RuntimeError("out of memory")}
    assert isinstance(cause_of(ours), DataError)
    assert isinstance(cause_of(foreign), TrainingError)
    assert "RuntimeError: out of memory" in str(cause_of(foreign))
