"""Every store operation before an S3 server that fails in every way the proxy knows: the right bytes, or a clear error."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from tests.chaos.fault_proxy import DOWNLOADS, UPLOADS, Fault, FaultProxy, Plan
from zscmr_ray.errors import DataError
from zscmr_ray.storage import Store, s3
from zscmr_ray.storage.retry import POLICY, RetryPolicy

DATA = random.Random(0).randbytes(300_000)
TRANSIENT = [fault for fault in Fault if fault is not Fault.SLOW]


@pytest.fixture
def store(proxy: FaultProxy, s3_bucket: str, tmp_path: Path) -> Store:
    return Store(f"{s3_bucket}/{tmp_path.name}")


@pytest.mark.parametrize("fault", sorted(set(TRANSIENT) - DOWNLOADS))
def test_an_upload_survives_two_of_each_fault(proxy: FaultProxy, store: Store, fault: Fault) -> None:
    proxy.use(Plan(script=[fault, fault]))
    store.write_bytes("x", DATA)
    assert proxy.injected == {fault: 2}
    assert store.read_bytes("x") == DATA


@pytest.mark.parametrize("fault", sorted(set(TRANSIENT) - UPLOADS))
def test_a_download_survives_two_of_each_fault(proxy: FaultProxy, store: Store, fault: Fault) -> None:
    store.write_bytes("x", DATA)
    proxy.use(Plan(script=[fault, fault]))
    assert store.read_bytes("x") == DATA
    assert proxy.injected == {fault: 2}


@pytest.mark.parametrize(
    "fault", [Fault.TORN_DOWNLOAD, Fault.SHORT_DOWNLOAD, Fault.ERROR_500, Fault.RESET_BEFORE]
)
def test_ranges_survive_too(proxy: FaultProxy, store: Store, fault: Fault) -> None:
    store.write_bytes("x", DATA)
    proxy.use(Plan(script=[None, fault, fault]))  # the first request is the head
    with store.open("x") as file:
        file.seek(1000)
        assert file.read(5000) == DATA[1000:6000]
    assert proxy.injected == {fault: 2}
    assert store.sha256("x") == hashlib.sha256(DATA).hexdigest()
    with store.local_copy("x") as path:
        assert path.read_bytes() == DATA


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 20))])
def test_a_long_mix_of_operations_ends_as_on_a_quiet_store(
    proxy: FaultProxy, store: Store, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    proxy.use(Plan(seed=seed, rates=dict.fromkeys(Fault, 0.02) | {Fault.HANG: 0.005}))
    local = Store(tmp_path / "local")
    for number in range(60):
        key = f"{rng.choice('abc')}/{rng.randrange(6)}"
        match rng.randrange(5):
            case 0 | 1:
                data = rng.randbytes(rng.choice([0, 1, 5000, 70_000]))
                for place in (store, local):
                    place.write_bytes(key, data)
            case 2:
                for place in (store, local):
                    place.delete(key)
            case 3:
                for place in (store, local):
                    place.delete_tree(key[0])
            case _:
                assert store.create_bytes(f"once/{number}", rng.randbytes(16))
                local.create_bytes(f"once/{number}", store.read_bytes(f"once/{number}"))
        assert store.exists(key) == local.exists(key)
        if local.exists(key):
            assert store.read_bytes(key) == local.read_bytes(key)
    assert [info.key for info in store.list()] == [info.key for info in local.list()]
    assert {info.key: info.size_bytes for info in store.list()} == {
        info.key: info.size_bytes for info in local.list()
    }
    assert sum(proxy.injected.values()) >= 20


def test_large_uploads_go_in_parts_and_are_whole(
    proxy: FaultProxy, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    data = random.Random(1).randbytes(12 << 20)
    (tmp_path / "source").write_bytes(data)
    # create, part 1 (torn, stored by half, then well), part 2, part 3, complete (answer lost, then asked again)
    proxy.use(Plan(script=[None, Fault.TORN_UPLOAD, Fault.ERROR_500, None, None, None, Fault.LOST_ANSWER]))
    store.put_file("x", tmp_path / "source")
    assert proxy.injected == {Fault.TORN_UPLOAD: 1, Fault.ERROR_500: 1, Fault.LOST_ANSWER: 1}
    assert store.read_bytes("x") == data
    assert store.info("x").version.endswith("-3")


def test_a_lost_answer_does_not_lose_a_creation(proxy: FaultProxy, store: Store) -> None:
    proxy.use(Plan(script=[Fault.LOST_ANSWER]))
    assert store.create_bytes("mine", b"token 1")
    assert not store.create_bytes("mine", b"token 2")
    assert store.read_bytes("mine") == b"token 1"
    assert proxy.injected == {Fault.LOST_ANSWER: 1}


@pytest.mark.parametrize(
    "fault", [Fault.ERROR_500, Fault.SLOW_DOWN_503, Fault.TOO_MANY_429, Fault.RESET_BEFORE]
)
def test_attempts_are_bounded(proxy: FaultProxy, store: Store, fault: Fault) -> None:
    store.write_bytes("x", b"1")
    operations = (
        lambda: store.write_bytes("x", b"2"),
        lambda: store.read_bytes("x"),
        lambda: store.info("x"),
        lambda: store.list(),
        lambda: store.delete("x"),
        lambda: store.exists("x"),
    )
    for operation in operations:
        proxy.use(Plan(always=fault))
        with pytest.raises(DataError, match=r"the storage keeps failing; got: .*12 attempts"):
            operation()
        # aiohttp sends an idempotent request once more, at once, where the connection broke.
        per_attempt = 2 if fault is Fault.RESET_BEFORE else 1
        assert sum(proxy.seen.values()) == POLICY.max_attempts * per_attempt
    proxy.use(Plan())
    assert store.read_bytes("x") == b"1"


def test_the_total_time_is_bounded(proxy: FaultProxy, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zscmr_ray.storage.retry.POLICY", RetryPolicy(max_total_s=1.2, first_wait_s=0.01))
    proxy.use(Plan(always=Fault.HANG))
    with pytest.raises(DataError, match=r"an answer within 12 attempts and 1 s"):
        store.read_bytes("x")
    assert sum(proxy.seen.values()) <= 4


def test_an_object_that_is_stored_torn_is_never_reported_good(proxy: FaultProxy, store: Store) -> None:
    proxy.use(Plan(always=Fault.HALF_STORED))
    with pytest.raises(DataError, match="torn upload"):
        store.write_bytes("x", DATA)


def test_a_replaced_object_is_not_read_as_a_mixture(proxy: FaultProxy, store: Store) -> None:
    store.write_bytes("x", DATA)
    with store.open("x") as file:
        store.write_bytes("x", DATA[::-1])
        with pytest.raises(DataError, match="changed while it was read"):
            file.read()
