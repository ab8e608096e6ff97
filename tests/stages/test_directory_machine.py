"""Lease, append and retry as a state machine: drivers run, die at any change, stall and wake up after a take-over.

Whatever happens, a manifest that is there is true, and a driver that ends well leaves the bytes of a fresh run.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.chaos.dying import Died, Life, living
from tests.stages.inline_executor import InlineExecutor
from tests.stages.numbers import digests
from tests.stages.toy_stage import Content, Rows, ToyStage
from zscmr_ray import lease
from zscmr_ray.claim import UPDATE, Update
from zscmr_ray.errors import RefusedError
from zscmr_ray.lease import read_lease
from zscmr_ray.manifest import MANIFEST, STAGE_MARK, read_manifest
from zscmr_ray.stages.plane import on_ray
from zscmr_ray.stages.plane.chunks import DecodedChunk, Shard
from zscmr_ray.stages.status import stage_status, status_lines
from zscmr_ray.stages.verify import verify_run
from zscmr_ray.storage import Store

# The updates of preprocess and embed; the index has more, of its own.
MODES = ("plain", "overwrite", Update.APPEND, Update.RETRY)
Input = dict[str, Content]
# Before which change of anything on disk a driver dies; most live.
DEATHS = st.none() | st.integers(0, 70)


@dataclass(frozen=True)
class Stalling(Rows):
    """Stops before its first shard until it is let on."""

    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def read(self, shard: Shard) -> Iterator[DecodedChunk]:
        self.reached.set()
        assert self.go_on.wait(60)
        return super().read(shard)


class StalledDriver:
    """A driver in a thread that took the lease and stands still before its first shard (or ended before that)."""

    def __init__(self, place: Path, contents: Input, mode: str) -> None:
        self.contents, self.source = contents, Stalling()
        self.error: BaseException | None = None
        self.life = Life()
        with living(self.life):
            self._stage = ToyStage(Store(place), contents, source=self.source)
        self._mode = mode
        self._thread = threading.Thread(target=self._drive, daemon=True)

    @property
    def is_stalled(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()
        while self._thread.is_alive() and not self.source.reached.wait(0.005):
            pass

    def wake(self) -> None:
        self.source.go_on.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _drive(self) -> None:
        try:
            drive(self._stage, self._mode)
        except RefusedError as error:
            self.error = error


def drive(stage: ToyStage, mode: str) -> None:
    if mode in ("plain", "overwrite"):
        stage.run(overwrite=mode == "overwrite")
    else:
        stage.run(Update(mode))


class DirectoryMachine(RuleBasedStateMachine):
    """One directory, its changing input, and at most one driver that stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="zscmr-machine-"))
        self.place, self.store = self.folder / "store", Store(self.folder / "store")
        self.input: Input = {"s0": Content(4, frozenset({1}))}
        self.inputs: dict[str, Input] = {}
        self.fresh: dict[str, dict[str, str]] = {}
        self.stalled: StalledDriver | None = None
        self.is_thought_dead = False
        self.seen: dict[str, str] = {}
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(on_ray, "RayExecutor", InlineExecutor)

    def teardown(self) -> None:
        if self.stalled is not None:
            self.stalled.wake()
        self._patch.undo()
        shutil.rmtree(self.folder)

    # -- the input, and what its owner would do then ----------------------------------------------------------

    @initialize()
    def fill(self) -> None:
        self.run("plain", None)

    @rule(
        rows=st.integers(0, 4),
        has_bad=st.booleans(),
        mode=st.sampled_from((Update.APPEND, None)),
        dies_at=DEATHS,
    )
    def add_shard(self, rows: int, has_bad: bool, mode: str | None, dies_at: int | None) -> None:
        bad = frozenset({0}) if has_bad and rows else frozenset()
        self.input = self.input | {f"s{len(self.input)}": Content(rows, bad)}
        if mode is not None:
            self.run(mode, dies_at)

    @rule(pick=st.integers(0, 9), mode=st.sampled_from((Update.RETRY, None)), dies_at=DEATHS)
    def repair_shard(self, pick: int, mode: str | None, dies_at: int | None) -> None:
        bad = [key for key in sorted(self.input) if self.input[key].bad] or sorted(self.input)[:1]
        key = bad[pick % len(bad)]
        self.input = self.input | {key: Content(self.input[key].rows, version=self.input[key].version)}
        if mode is not None:
            self.run(mode, dies_at)

    @rule(key=st.sampled_from(("s0", "s1")), mode=st.sampled_from(MODES))
    def change_a_shard_and_back(self, key: str, mode: str) -> None:
        kept = self.input
        old = self.input.get(key, Content(1))
        self.input = self.input | {key: Content(old.rows, old.bad, old.version + 1)}
        self.run(mode, None)
        if mode != "overwrite":
            self.input = kept

    # -- drivers --------------------------------------------------------------------------------------------

    @rule(mode=st.sampled_from(MODES), dies_at=DEATHS)
    def run(self, mode: str, dies_at: int | None) -> None:
        before, was_switching = digests(self.store), self.store.exists(f"{UPDATE}/{MANIFEST}")
        may_run = self.may_run(mode)
        life = Life(dies_at)
        with living(life), self.alive(life):
            try:
                drive(ToyStage(Store(self.place), self.remembered()), mode)
            except Died:
                return
            except RefusedError:
                assert was_switching or (not may_run and digests(self.store) == before)
                return
        assert was_switching or may_run
        assert digests(self.store) == self.expected(self.input)

    @precondition(lambda self: self.stalled is None)
    @rule(mode=st.sampled_from(MODES))
    def stall(self, mode: str) -> None:
        driver = StalledDriver(self.place, self.remembered(), mode)
        with living(driver.life), self.alive(driver.life):
            driver.start()
        if driver.is_stalled:
            self.stalled, self.is_thought_dead = driver, False

    @precondition(lambda self: self.stalled is not None)
    @rule(mode=st.sampled_from((*MODES, None)), dies_at=DEATHS)
    def pass_over(self, mode: str | None, dies_at: int | None) -> None:
        self.is_thought_dead = True
        if mode is not None:
            self.run(mode, dies_at)

    @precondition(lambda self: self.stalled is not None)
    @rule()
    def wake(self) -> None:
        driver, before, note = self.stalled, digests(self.store), read_lease(self.store)
        assert driver is not None and note is not None
        was_passed_over = note.process != driver.life.name
        driver.wake()
        self.stalled = None
        if was_passed_over:
            assert isinstance(driver.error, RefusedError)
            assert digests(self.store) == before, "a driver that was passed over changed something"
        else:
            assert driver.error is None
            assert digests(self.store) == self.expected(driver.contents)

    # -- what always holds ------------------------------------------------------------------------------------

    @invariant()
    def what_a_manifest_says_is_true(self) -> None:
        found = digests(self.store)
        if found != self.seen and read_manifest(self.store) is not None:
            (report,) = verify_run(str(self.place))
            assert report.violations == []
        self.seen = found

    @invariant()
    def status_can_be_told(self) -> None:
        found = stage_status(self.store, "embed")
        assert status_lines(found)
        if read_manifest(self.store) is None:
            assert found.state in ("to do", "failed", "running")

    # -- the model --------------------------------------------------------------------------------------------

    def may_run(self, mode: str) -> bool:
        """Whether a driver of this mode is let in: by the lease, and by what the directory was made of."""
        complete = read_manifest(self.store)
        mark = (
            self.store.read_json(STAGE_MARK)["input_fingerprint"] if self.store.exists(STAGE_MARK) else None
        )
        begun = complete.key.input_fingerprint if complete is not None else mark
        key = ToyStage(self.store, self.input).key.input_fingerprint
        if complete is not None and begun == key and mode in ("plain", Update.APPEND):
            return True  # nothing to do, and no lease needed
        if self.stalled is not None and not self.is_thought_dead:
            note = read_lease(self.store)
            if note is not None and note.process == self.stalled.life.name:
                return False
        if mode == "overwrite" or begun is None or begun == key:
            return True
        return complete is not None and may_update(mode, self.inputs[str(begun)], self.input)

    def remembered(self) -> Input:
        self.inputs[ToyStage(self.store, self.input).key.input_fingerprint] = self.input
        return self.input

    def expected(self, contents: Input) -> dict[str, str]:
        """The files of a fresh run."""
        name = ToyStage(self.store, contents).key.input_fingerprint[:16]
        if name not in self.fresh:
            ToyStage(Store(self.folder / name), contents).run()
            self.fresh[name] = digests(Store(self.folder / name))
        return self.fresh[name]

    @contextlib.contextmanager
    def alive(self, life: Life) -> Iterator[None]:
        """While this driver runs, a stalled one that is not thought dead is a living process."""
        names = {life.name}
        if self.stalled is not None and not self.is_thought_dead:
            names.add(self.stalled.life.name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lease, "_is_gone", lambda process: process not in names)
            yield


def may_update(mode: str, old: Input, new: Input) -> bool:
    """Whether an update of a directory made of `old` may turn it into one of `new`."""
    if mode == Update.APPEND:
        return all(new.get(key) == content for key, content in old.items())
    return (
        mode == Update.RETRY
        and old.keys() == new.keys()
        and all(old[key] == new[key] or old[key].bad for key in old)
    )


_SETTINGS = settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    max_examples=25,
    stateful_step_count=20,
    derandomize=True,
    database=None,
)

TestDirectory = DirectoryMachine.TestCase
TestDirectory.settings = _SETTINGS


@pytest.mark.long
@pytest.mark.timeout(1800)
class TestDirectoryLong(DirectoryMachine.TestCase):
    """The same with more, random examples."""

    settings = settings(_SETTINGS, max_examples=600, stateful_step_count=30, derandomize=False)
