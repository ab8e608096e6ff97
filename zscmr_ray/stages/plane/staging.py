"""The bookkeeping below `_staging/` of a stage directory: chunk results waiting for their shard, and attempts.

A chunk file is written atomically and its bytes depend on the chunk alone, so that writing it twice (a retried
task) changes nothing. Each driver stages below the number of its lease: what a driver that was passed over still
writes is never read. Nothing here is output: the commit reads it (checksums compared), the next run and the end of
the stage delete it, so that no write waits for the disk either.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa

from zscmr_ray.errors import DataError
from zscmr_ray.stages.plane.chunks import Failure, ipc_to_table, table_to_ipc
from zscmr_ray.storage import Store

STAGING = "_staging"
_ATTEMPTS = "attempts"


def staging_store(store: Store, epoch: int) -> Store:
    """Where the driver with this lease number stages; the other functions here work in it."""
    return store.child(f"{STAGING}/{epoch:08d}")


def shard_prefix(part: str) -> str:
    """The staging folder of one part."""
    return PurePosixPath(part).stem


def chunk_key(part: str, index: int) -> str:
    """The file of one chunk's result."""
    return f"{shard_prefix(part)}/chunk-{index:06d}"


def write_chunk(store: Store, part: str, *, index: int, tables: Mapping[str, pa.Table]) -> str:
    """Stage the tables of one chunk in one atomic put: a line of JSON with their sizes, then Arrow IPC streams.

    Returns the sha256 of the file in hex.
    """
    buffers = {name: table_to_ipc(table) for name, table in sorted(tables.items())}
    header = json.dumps({name: buffer.size for name, buffer in buffers.items()}) + "\n"
    # Streams start at a multiple of 64 bytes: Arrow then reads them in place.
    padded = header.rstrip("\n").encode().ljust(-len(header) % 64 + len(header) - 1) + b"\n"
    digest = hashlib.sha256()
    with store.open_write(chunk_key(part, index), durable=False) as file:
        for piece in (padded, *buffers.values()):
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def read_chunk(store: Store, part: str, *, index: int, sha256: str | None) -> dict[str, pa.Table]:
    """Read a staged chunk back; raises DataError when it is not what the encoder wrote (None = checked before)."""
    data = store.read_bytes(chunk_key(part, index))
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(
            "a staged chunk changed on disk",
            got=f"{store.uri}/{chunk_key(part, index)}",
            expected=f"sha256 {sha256}",
            remedy="run the stage again; two runs must not share a directory",
        )
    start = data.index(b"\n") + 1
    buffer, tables = pa.py_buffer(data), {}
    for name, size in json.loads(data[:start]).items():
        tables[name] = ipc_to_table(buffer.slice(start, size))
        start += size
    return tables


class HeldChunks:
    """Chunk results in the memory of a process that commits what it encodes: they need no file, up to so many bytes.

    Written and read again, they cost .5% of a row of decoding and the disk's own work. A process that dies loses them, and
    its task is done again from the start, with files as without.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._held: dict[str, dict[int, Mapping[str, pa.Table]]] = {}

    def put(self, part: str, *, index: int, tables: Mapping[str, pa.Table]) -> bool:
        """Hold a chunk's tables, in the place of what an earlier attempt left; False when there is no room for them."""
        chunks = self._held.setdefault(part, {})
        self._num_bytes -= _num_bytes(chunks.pop(index, {}))
        num_bytes = _num_bytes(tables)
        if self._num_bytes + num_bytes > self._max_bytes:
            return False
        chunks[index] = tables
        self._num_bytes += num_bytes
        return True

    def get(self, part: str, *, index: int) -> dict[str, pa.Table] | None:
        """The tables of a chunk, None when they are not here."""
        found = self._held.get(part, {}).get(index)
        return None if found is None else dict(found)

    def drop(self, part: str) -> None:
        """Forget all chunks of a part."""
        self._num_bytes -= sum(map(_num_bytes, self._held.pop(part, {}).values()))


def _num_bytes(tables: Mapping[str, pa.Table]) -> int:
    return sum(table.nbytes for table in tables.values())


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at some work on a part: its own note, and those of tries that never came to an end."""

    note: str
    earlier: tuple[str, ...]

    def refusal(self, max_failures: int, *, doing: str) -> Failure | None:
        """Why the work is not begun again: it took its worker with it so many times. None where it may be."""
        if len(self.earlier) < max_failures:
            return None
        return Failure("crashed", f"its worker crashed {max_failures} times {doing}")


def note_attempt(store: Store, part: str, *, what: str) -> Attempt:
    """Note that some work on a part begins; `earlier` says how often it began before without an end.

    Ray retries the task of a crashed worker for ever; these notes are how the next attempt knows. They lie in one folder,
    which holds the work under way and no more: a folder for each cost as much as the note.
    """
    prefix = f"{_ATTEMPTS}/{shard_prefix(part)}.{what}."
    earlier = tuple(info.key for info in store.list(_ATTEMPTS) if info.key.startswith(prefix))
    note = f"{prefix}{uuid.uuid4().hex}"
    store.write_bytes(note, b"", durable=False)
    return Attempt(note, earlier)


def end_attempt(store: Store, attempt: Attempt) -> None:
    """Forget the attempts at some work: it came to its end."""
    for note in (attempt.note, *attempt.earlier):
        store.delete(note)
