"""One driver per stage directory: a lease with a fencing number, on a local disk and on S3 alike (DESIGN 2).

    _lease/00000007.json      the seventh driver of this directory: who, since when, how far, and whether it ended

Taking the lease is creating the next number, which the storage allows one driver only (a link on a disk, a put with
If-None-Match on S3). Renewing is rewriting one's own file, so that a driver that was passed over can harm nobody by
it. The highest number owns the directory; everything a driver makes visible is checked against it first (`Fence`).
Nobody's clock decides alone: a lease that looks expired is watched for a beat before it is taken.

It is not a lock for threads, and it protects nothing that does not ask.
"""

from __future__ import annotations

import getpass
import os
import socket
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.storage import Store

LEASES = "_lease"
TTL_S = 30.0
RENEW_S = 8.0
# A holder that lives renews within this time, whatever the two clocks say.
WATCH_S = 10.0
# Progress is noted at most this often, whatever the number of commits.
NOTE_S = 2.0


class LeaseNote(BaseModel):
    """One driver's file: who it is, how far its stage has come, and whether it gave the directory back.

    `process` names the process among all there ever were (`_process_name`), "" where unknown; `error` says why it ended.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    epoch: int
    token: str
    stage: str
    user: str
    host: str
    pid: int
    process: str
    since_s: float
    renewed_s: float
    beats: int = 0
    ended: bool = False
    error: str | None = None
    progress: dict[str, Any] = Field(default_factory=dict)

    @property
    def holder(self) -> str:
        """Who holds it since when, for people."""
        return f"{self.user}@{self.host}, process {self.pid}, since {_clock_text(self.since_s)}"

    @property
    def looks_held(self) -> bool:
        """Whether the driver seems to be at work: by this machine's clock and process table, without waiting."""
        return not self.ended and not _is_gone(self.process) and _age_s(self) <= TTL_S


@dataclass(frozen=True)
class Fence:
    """The right to make things visible in a directory, until a later driver has taken its lease; travels to workers."""

    store: Store
    epoch: int
    token: str

    def check(self) -> None:
        """Raise RefusedError when the directory has another owner by now."""
        newest = read_lease(self.store)
        # The token too: on a server that ignores If-None-Match two drivers may both believe in one number.
        if newest is None or newest.token != self.token:
            raise RefusedError(
                f"another driver has taken over {self.store.uri}",
                got=f"lease {newest.epoch} of {newest.holder}" if newest else "no lease",
                expected=f"lease {self.epoch}, this driver's",
                remedy="nothing is lost: what this driver had committed stays; let the other one finish",
            )


class Lease:
    """A held lease: renewed by a thread inside the block, given back, with the error if there is one, at its end."""

    def __init__(self, store: Store, note: LeaseNote) -> None:
        self.store, self.note = store, note
        self.fence = Fence(store, note.epoch, note.token)
        self.is_lost = False
        self._noting, self._writing = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="zscmr-lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._write(ended=True, error=None if error is None else str(error) or type(error).__name__)

    def report(self, **progress: Any) -> None:
        """Note how far the stage has come, for `zscmr status`; written at most every two seconds."""
        with self._noting:
            self.note = self.note.model_copy(update={"progress": self.note.progress | progress})
        if time.time() - self.note.renewed_s >= NOTE_S:
            self._write()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            self._write()

    def _write(self, **changes: Any) -> None:
        """Rewrite the own file, unless the directory has another owner; says what fails and goes on."""
        try:
            with self._writing:
                self.fence.check()
                with self._noting:
                    changes |= {"beats": self.note.beats + 1, "renewed_s": time.time()}
                    self.note = self.note.model_copy(update=changes)
                self.store.write_json(_key(self.note.epoch), self.note.model_dump())
        except RefusedError as error:
            # The stage meets the same refusal at its next commit; the thread has nothing left to renew.
            self.is_lost = True
            self._stop.set()
            print(f"{self.note.stage}: {error.message} ({error.got})", file=sys.stderr)
        except (DataError, OSError) as error:
            print(f"{self.note.stage}: the lease was not renewed: {error}", file=sys.stderr)


def take_lease(store: Store, stage: str, **progress: Any) -> Lease:
    """Become the directory's one driver; `progress` is noted at once (later: `Lease.report`).

    Takes over at once what was given back, or whose process has died on this machine: a dead process writes nothing,
    and the workers it may leave behind for a moment are fenced off by the new number. Raises RefusedError, naming the
    holder, while another driver lives or may live.
    """
    while True:
        newest = read_lease(store)
        if newest is not None and _is_held(store, newest):
            raise _held(store, newest)
        # The number after the very lease that was looked at: one that came meanwhile has not been asked about.
        note = _new_note(stage, epoch=newest.epoch + 1 if newest is not None else 1, progress=progress)
        if store.create_bytes(_key(note.epoch), note.model_dump_json(indent=2).encode()):
            epochs = _epochs(store)
            if max(epochs) == note.epoch:
                for epoch in epochs:
                    if epoch < note.epoch:
                        store.delete(_key(epoch))
                return Lease(store, note)
            # The number was free because it had been used and swept away: later ones are there.
            store.delete(_key(note.epoch))
        # Another driver was faster: look at its lease, in a moment.
        time.sleep(0.05)


def read_lease(store: Store) -> LeaseNote | None:
    """The newest lease of a directory, or None where there was never one; never waits."""
    while epochs := _epochs(store):
        key = _key(max(epochs))
        try:
            return LeaseNote.model_validate(store.read_json(key))
        except ValidationError as error:
            raise DataError(
                "an unreadable lease",
                got=f"{store.uri}/{key}",
                remedy="delete it if no driver is at work there",
            ) from error
        except DataError:
            # Deleted by its successor between listing and reading; anything else is said.
            if store.exists(key):
                raise
    return None


def _is_held(store: Store, note: LeaseNote) -> bool:
    if note.ended or _is_gone(note.process):
        return False
    if _age_s(note) <= TTL_S:
        return True
    print(
        f"{note.stage}: the lease of {note.holder} has expired; watching it for {WATCH_S:.0f} s before taking over",
        file=sys.stderr,
    )
    time.sleep(WATCH_S)
    later = read_lease(store)
    return later is not None and not later.ended and (later.token, later.beats) != (note.token, note.beats)


def _held(store: Store, note: LeaseNote) -> RefusedError:
    age_s = _age_s(note)
    return RefusedError(
        f"{note.stage} is already at work in {store.uri}",
        got=f"{note.holder}, last heard of {max(age_s, 0):.0f} s ago",
        expected="one driver per directory",
        remedy=f"wait for it (`zscmr status {store.uri}`) or stop it; if it was killed, the same command takes over "
        f"in {max(TTL_S - age_s, 1):.0f} s",
    )


def _new_note(stage: str, *, epoch: int, progress: dict[str, Any]) -> LeaseNote:
    now_s = time.time()
    return LeaseNote(
        epoch=epoch,
        token=uuid.uuid4().hex,
        stage=stage,
        user=_user(),
        host=socket.gethostname(),
        pid=os.getpid(),
        process=_process_name(),
        since_s=now_s,
        renewed_s=now_s,
        progress=progress,
    )


def _key(epoch: int) -> str:
    return f"{LEASES}/{epoch:08d}.json"


def _epochs(store: Store) -> list[int]:
    names = [info.key.removeprefix(f"{LEASES}/").removesuffix(".json") for info in store.list(LEASES)]
    return [int(name) for name in names if name.isdecimal()]


def _age_s(note: LeaseNote) -> float:
    return time.time() - note.renewed_s


def _clock_text(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


# -- processes of this machine ----------------------------------------------------------------------------


def _process_name() -> str:
    """A name no other process has had: boot, process-id namespace, pid and start time; "" where Linux's /proc is not.

    The namespace is part of it, because a pid of another container is not to be looked for here.
    """
    machine, found = _machine(), _process_state(os.getpid())
    return f"{machine} {os.getpid()} {found[1]}" if machine and found else ""


def _is_gone(process: str) -> bool:
    """Whether a process of this machine, this boot and this namespace has ended (killed and not yet reaped counts)."""
    if not process:
        return False
    machine, pid, started = process.split(" ")
    if machine != _machine():
        return False
    found = _process_state(int(pid))
    return found is None or found[0] == "Z" or found[1] != started


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_state(pid: int) -> tuple[str, str] | None:
    """State letter and start time of a process, None when there is none."""
    try:
        # The command's name, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], fields[19]
