"""The lease on a local disk and on a real S3 server: one holder, refusals that name it, take-overs, fencing."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from zscmr_ray import lease as leases
from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.lease import LEASES, Lease, LeaseNote, read_lease, take_lease
from zscmr_ray.storage import Store

# A driver that takes the lease, says so, and waits to be killed.
HOLDER = """
import sys, time
from zscmr_ray.lease import take_lease
from zscmr_ray.storage import Store
with take_lease(Store(sys.argv[1]), "embed"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(tmp_path / "store")
    return Store(f"{request.getfixturevalue('s3_bucket')}/lease-{tmp_path.name}")


def newest(store: Store) -> LeaseNote:
    note = read_lease(store)
    assert note is not None
    return note


def rewrite(store: Store, **changes: object) -> None:
    """Change the newest lease as another driver, machine or time would have left it."""
    note = newest(store).model_copy(update=changes)
    store.write_json(f"{LEASES}/{note.epoch:08d}.json", note.model_dump())


def elsewhere(store: Store, *, age_s: float) -> Lease:
    """A lease whose driver runs on another machine and was last heard of so long ago; nothing renews it."""
    lease = take_lease(store, "embed")
    rewrite(store, process="other-boot/pid:[1] 1 1", host="other", renewed_s=time.time() - age_s)
    return lease


def test_one_driver_at_a_time_and_the_next_number_after_it(store: Store) -> None:
    for epoch in (1, 2):
        with take_lease(store, "embed") as held:
            assert held.note.epoch == epoch
            with pytest.raises(
                RefusedError, match=f"process {os.getpid()}, since .* one driver per directory"
            ):
                take_lease(store, "train")
        assert newest(store).ended and newest(store).error is None
    assert [info.key for info in store.list()] == [f"{LEASES}/00000002.json"]


@pytest.mark.parametrize("ended", [False, True])
def test_a_lease_that_comes_between_looking_and_taking_is_looked_at(
    store: Store, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """Two drivers look at an empty directory; the other one is faster, and may have ended and been swept since."""
    others: list[Lease] = []
    create = Store.create_bytes

    def create_late(self: Store, key: str, data: bytes) -> bool:
        if not others:
            others.append(None)  # type: ignore[arg-type]
            others[0] = take_lease(store, "train")
            if ended:
                with others[0]:
                    pass
                others[0] = take_lease(store, "train")
        return create(self, key, data)

    monkeypatch.setattr(Store, "create_bytes", create_late)
    with pytest.raises(RefusedError, match="train is already at work"):
        take_lease(store, "embed")
    assert newest(store).token == others[0].note.token
    assert len(store.list(LEASES)) == 1


def test_many_at_once_leave_one(store: Store) -> None:
    won: list[Lease] = []
    refused: list[RefusedError] = []

    def contend() -> None:
        try:
            won.append(take_lease(store, "embed"))
        except RefusedError as error:
            refused.append(error)

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 3)
    assert newest(store).token == won[0].note.token
    assert all(error.exit_code == 4 for error in refused)


def test_an_error_gives_it_back_and_is_noted(store: Store) -> None:
    with pytest.raises(DataError), take_lease(store, "embed") as held:
        held.report(rows_done=3)
        raise DataError("a bad shard", got="x.tar")
    note = newest(store)
    assert note.ended and note.error == "a bad shard; got: x.tar" and note.progress == {"rows_done": 3}
    with pytest.raises(KeyboardInterrupt), take_lease(store, "embed"):
        raise KeyboardInterrupt
    assert newest(store).error == "KeyboardInterrupt"


def test_a_living_driver_elsewhere_is_refused_and_an_expired_one_is_watched(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leases, "WATCH_S", 0.2)
    lost = elsewhere(store, age_s=12)
    with pytest.raises(RefusedError, match=r"@other.* 12 s ago.*takes over in 1[78] s"):
        take_lease(store, "embed")
    rewrite(store, renewed_s=time.time() - 31)
    with take_lease(store, "embed") as held:
        assert "has expired; watching it" in capsys.readouterr().err
        assert held.note.epoch == 2
        with pytest.raises(RefusedError, match=r"got: lease 2 of .* expected: lease 1"):
            lost.fence.check()
        held.fence.check()


def test_a_clock_that_is_wrong_does_not_take_a_living_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder's clock is an hour behind: its lease looks expired, but it goes on beating."""
    elsewhere(store, age_s=3600)
    monkeypatch.setattr(leases.time, "sleep", lambda seconds: rewrite(store, beats=newest(store).beats + 1))
    with pytest.raises(RefusedError, match="already at work"):
        take_lease(store, "embed")


def test_one_that_was_passed_over_cannot_renew_report_or_give_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leases, "WATCH_S", 0.05)
    monkeypatch.setattr(leases, "RENEW_S", 0.05)
    monkeypatch.setattr(leases, "NOTE_S", 0.0)
    lost = elsewhere(store, age_s=31)
    with take_lease(store, "embed") as held:
        with lost:
            lost._thread.join(timeout=30)
            assert lost.is_lost, "the thread saw it"
            lost.report(rows_done=1)
        assert "another driver has taken over" in capsys.readouterr().err
        assert newest(store).token == held.note.token
        assert not newest(store).ended
    assert newest(store).epoch == 2 and newest(store).progress == {}


def test_the_thread_renews(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_S", 0.02)
    with take_lease(store, "embed") as held:
        deadline_s = time.monotonic() + 30
        while newest(store).beats < 2:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        assert newest(store).renewed_s > held.note.since_s


def test_a_killed_driver_of_this_machine_is_taken_over_at_once(store: Store) -> None:
    command = [sys.executable, "-c", HOLDER, store.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "held\n"
        with pytest.raises(RefusedError, match=f"process {driver.pid}"):
            take_lease(store, "embed")
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        assert not newest(store).ended
        started_s = time.monotonic()
        with take_lease(store, "embed") as held:
            assert held.note.epoch == 2
        assert time.monotonic() - started_s < 5


def test_a_fence_travels_to_workers(store: Store) -> None:
    with take_lease(store, "embed") as held:
        fence = pickle.loads(pickle.dumps(held.fence))
        fence.check()
        store.delete_tree(LEASES)
        with pytest.raises(RefusedError, match="got: no lease"):
            fence.check()


def test_a_pid_that_another_process_has_now_is_gone(tmp_path: Path) -> None:
    """Same machine, same pid (ours), another start time; and a namespace that is not ours decides nothing."""
    store = Store(tmp_path)
    take_lease(store, "embed")
    machine, pid, started = newest(store).process.split(" ")
    rewrite(store, process=f"{machine} {pid} {int(started) - 1}")
    take_lease(store, "embed")
    rewrite(store, process=f"{machine.replace('[', '[9')} {pid} {int(started) - 1}")
    with pytest.raises(RefusedError):
        take_lease(store, "embed")


def test_an_unreadable_lease_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_bytes(f"{LEASES}/00000001.json", json.dumps({"epoch": 1}).encode())
    with pytest.raises(DataError, match=r"unreadable lease.*delete it"):
        take_lease(store, "embed")


def test_a_failed_renewal_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    monkeypatch.setattr(leases, "NOTE_S", 0.0)
    with take_lease(store, "embed") as held:
        with monkeypatch.context() as broken:
            broken.setattr(
                Store, "write_json", lambda *_: (_ for _ in ()).throw(OSError("the network is down"))
            )
            held.report(rows_done=1)
        assert "not renewed: the network is down" in capsys.readouterr().err
        held.report(rows_done=2)
        assert newest(store).progress == {"rows_done": 2}
