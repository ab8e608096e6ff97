"""States of a training: written by all ranks or by none, found when whole, divided anew for another number of ranks."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.rank_process import run_ranks
from tests.engine.test_step import load_features, make_source, make_step
from tests.pairs_run import tiny_config
from zscmr_ray.config import Config
from zscmr_ray.engine.bare import BareEngine
from zscmr_ray.engine.collectives import rank, world_size
from zscmr_ray.engine.deepspeed import DeepSpeedEngine
from zscmr_ray.engine.resume import COMPLETE, FOLDER, load_engine, newest_state, save_state
from zscmr_ray.errors import RefusedError, StorageError, UnsavedStateError
from zscmr_ray.storage import Store

STAGES = (0, 1, 2, 3)
STEPS, MORE = 5, 6
MODEL = {"method": "fgan", "width": 16}


def save(store: Store, engine: Any, step: int, *, keep: int = 2, zero_stage: int = 0) -> None:
    save_state(
        store, engine, step=step, run={"step": step}, best=None, zero_stage=zero_stage, architecture=MODEL, keep=keep
    )  # fmt: skip


def config_of(zero_stage: int) -> Config:
    return tiny_config("unused", train={"zero_stage": zero_stage})


def train_and_save(root: str, stages: tuple[int, ...] = STAGES) -> dict[int, list[Any]]:
    """Some steps, a state, some more: their losses and the weights, of ZeRO stages."""
    found = {}
    source = make_source(load_features(), rank=rank(), num_workers=world_size())
    for stage in stages:
        engine = DeepSpeedEngine(make_step(), config=config_of(stage), total_steps=20)
        for step in range(STEPS):
            engine.update(source.inputs(step))
        save(Store(f"{root}/{stage}"), engine, STEPS, zero_stage=stage)
        losses = [engine.update(source.inputs(step))["total"] for step in range(STEPS, STEPS + MORE)]
        found[stage] = [losses, engine.weights()]
    return found


def go_on(root: str, stages: tuple[int, ...] = STAGES) -> dict[int, list[Any]]:
    found = {}
    source = make_source(load_features(), rank=rank(), num_workers=world_size())
    for stage in stages:
        store = Store(f"{root}/{stage}")
        engine = DeepSpeedEngine(make_step(), config=config_of(stage), total_steps=20)
        point = newest_state(store, zero_stage=stage, architecture=MODEL)
        assert point is not None
        load_engine(store, point, engine)
        losses = []
        for step in range(STEPS, STEPS + MORE):
            losses.append(engine.update(source.inputs(step))["total"])
            # As a validation does.
            engine.weights()
        found[stage] = [losses, engine.weights()]
    return found


def go_on_and_save_anew(old: str, new: str) -> list[dict[int, list[Any]]]:
    return [go_on(old), train_and_save(new)]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_another_number_of_ranks_goes_on_for_every_zero_stage(tmp_path: Path) -> None:
    """From two ranks to one and from one to two: losses and weights within 1e-4 of those that went on undisturbed."""
    two, one = str(tmp_path / "two"), str(tmp_path / "one")
    whole_two = run_ranks(train_and_save, 2, two)[0]
    from_two, whole_one = run_ranks(go_on_and_save_anew, 1, two, one)[0]
    from_one = run_ranks(go_on, 2, one)[0]
    for found, whole in ((from_two, whole_two), (from_one, whole_one)):
        for stage in STAGES:
            assert found[stage][0] == pytest.approx(whole[stage][0], abs=1e-4), stage
            for name, value in whole[stage][1].items():
                assert (found[stage][1][name] - value).abs().max() < 1e-4, (stage, name)


def whole_and_gone_on(root: str) -> list[dict[int, list[Any]]]:
    return [train_and_save(root, (3,)), go_on(root, (3,))]


def test_parameters_that_are_divided_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """With the weights gathered between the steps, as validations do."""
    whole, found = run_ranks(whole_and_gone_on, 1, str(tmp_path))[0]
    assert found[3][0] == whole[3][0]
    assert all(torch.equal(found[3][1][name], value) for name, value in whole[3][1].items())


class StateOfBytes(BareEngine):
    """An engine whose state is its number; nothing is trained here."""

    def __init__(self) -> None:
        pass

    def save(self, folder: Path) -> None:
        torch.save({"rank": rank()}, folder / f"{rank()}.pt")


class StateOfNothing(StateOfBytes):
    """One whose files are gone before they are kept."""

    def save(self, folder: Path) -> None:
        pass


def names(store: Store) -> list[str]:
    return sorted({info.key.split("/")[0] for info in store.child(FOLDER).list()})


def found(store: Store) -> str | None:
    point = newest_state(store, zero_stage=0, architecture=MODEL)
    return None if point is None else point.name


def test_the_newest_whole_states_are_kept_and_passed_over_ones_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    for step in (3, 6, 9, 12):
        save(store, StateOfBytes(), step)
    assert names(store) == ["step-00000009", "step-00000012"]
    (tmp_path / "engine/step-00000012/ranks/0.pt").write_bytes(b"half")
    (tmp_path / "engine/step-00000015/ranks").mkdir(parents=True)
    (tmp_path / "engine/step-00000015/ranks/0.pt").write_bytes(b"torn")
    assert found(store) == "step-00000009"
    said = capsys.readouterr().err
    assert "step-00000015: it was not written to its end" in said
    assert "step-00000012: ranks/0.pt has another checksum" in said
    # Going on from 9: what was passed over must not push the next state out.
    save(store, StateOfBytes(), 10, keep=1)
    assert names(store) == ["step-00000010"]
    (tmp_path / "engine/step-00000010" / COMPLETE).write_text('{"files": {}}')
    assert found(store) is None
    assert "lacks architecture, num_workers, zero_stage" in (said := capsys.readouterr().err)
    assert "no resumable state is whole: beginning anew" in said


class NoRoom(StateOfBytes):
    """On a machine whose temporary folder is full."""

    def save(self, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_no_room_for_a_state_in_the_temporary_folder_leaves_the_former_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    save(store, StateOfBytes(), 3)
    with pytest.raises(StorageError, match=r"temporary folder; got: OSError: .*No space left.*set TMPDIR"):
        save(store, NoRoom(), 6)
    assert names(store) == ["step-00000003"]
    assert found(store) == "step-00000003"


def test_a_state_of_another_model_is_refused_with_what_differs(tmp_path: Path) -> None:
    save(Store(tmp_path), StateOfBytes(), 3)
    with pytest.raises(
        RefusedError, match=r"of another model.*got: width=16; expected: width=32.*--overwrite"
    ):
        newest_state(Store(tmp_path), zero_stage=0, architecture=MODEL | {"width": 32})


def errors_of_a_full_disk(root: str) -> list[str]:
    """Only rank 1's disk is full; every rank says so, and nobody waits for anybody."""
    save(Store(root), StateOfBytes(), 3)
    if rank() == 1:
        Store.put_file = _full  # type: ignore[method-assign]
    try:
        save(Store(root), StateOfBytes(), 6)
    except UnsavedStateError as error:
        return [str(error), str(found(Store(root)))]
    return []


def _full(*_: object) -> None:
    raise StorageError("the disk is full", got="/there", remedy="make room")


def test_what_one_rank_cannot_write_all_raise(tmp_path: Path) -> None:
    for said, newest in run_ranks(errors_of_a_full_disk, 2, str(tmp_path)):
        assert (
            "state of step 6 could not be written; got: the disk is full: /there; remedy: make room" in said
        )
        assert newest == "step-00000003"


_ENDS_MEANWHILE = """
import atexit, sys, threading, time
# Before anything has a temporary folder: what tidies those up when the process ends then comes first.
atexit.register(lambda: worker.join())
from tests.engine.test_resume import StateOfBytes, save
from zscmr_ray.storage import Store

class Slow(StateOfBytes):
    def save(self, folder):
        super().save(folder)
        ending.set()
        time.sleep(1)

ending = threading.Event()
worker = threading.Thread(target=lambda: save(Store(sys.argv[1]), Slow(), 5), daemon=True)
worker.start()
ending.wait()
"""


def test_a_process_that_ends_while_a_state_is_written_leaves_a_whole_one_or_none(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _ENDS_MEANWHILE, str(tmp_path)], check=True, timeout=120)
    point = newest_state(Store(tmp_path), zero_stage=0, architecture=MODEL)
    assert point is not None and point.files == ("ranks/0.pt",)


def test_a_state_without_any_ranks_engine_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    save(store, StateOfBytes(), 3)
    save(store, StateOfNothing(), 6)
    assert found(store) == "step-00000003"
    assert "step-00000006: it holds no rank's engine" in capsys.readouterr().err
