"""What flows between decode, encode and the driver: shards, chunks, results, and the Arrow rows that carry them.

One row is a bundle: one chunk, or those of several tiny shards, each of which would otherwise cost a task. Ray Data must
neither split nor join chunks, because a chunk is the unit of encoding and with it of the output's bytes. Not the files of
a stage: those are `staging.py` and `schema.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pyarrow as pa

# A chunk is cut at `chunk_rows` rows or here, whichever comes first: kept original images may be large.
CHUNK_BYTES = 64 << 20
# Shards of one decode task: many tiny ones share it, so that a task's fixed cost (about 10 ms) is paid once.
TASK_BYTES = 64 << 20
TASK_SHARDS = 256
# Chunks of one bundle at the most. A shard of one row cost 27 ms when each chunk was an actor's task of its own.
BUNDLE_CHUNKS = 64


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of input and of retry, and the output part it becomes.

    `key` is relative and names it to people; `detail` is what the stage's source needs to read it (JSON values).
    """

    part: str
    key: str
    size_bytes: int
    num_rows: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row of `rejected/part-*.parquet`."""

    id: str | None
    shard_key: str
    offset: int
    stage: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class DecodedChunk:
    """Consecutive rows of one shard, ready to encode; rows_in = rows of the table + rejects + filtered."""

    table: pa.Table
    rejects: tuple[RejectedRow, ...]
    num_in: int
    num_filtered: int
    last: bool


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """What a chunk became: one table per output directory, the rows that could not be encoded, and what was counted.

    A `tally` is of something other than rows (words without a vector); the manifest has its sum as `tally_<name>`.
    """

    outputs: dict[str, pa.Table]
    rejects: tuple[RejectedRow, ...] = ()
    tally: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a shard cannot be committed: a word for programs and a sentence for people."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Effort:
    """What some rows have cost so far (`effort.py`): CPU seconds; seconds of encoder, storage, commits; bytes."""

    decode_cpu_s: float = 0.0
    encode_cpu_s: float = 0.0
    encode_s: float = 0.0
    read_s: float = 0.0
    read_bytes: int = 0
    write_s: float = 0.0
    write_bytes: int = 0
    commit_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """All that travels back to the driver: where the chunk's rows are and how many, or why there are none.

    The last one of a shard that was committed where it was encoded has its `commit`, as JSON.
    """

    part: str
    index: int
    last: bool
    num_in: int = 0
    num_filtered: int = 0
    num_rejected: int = 0
    sha256: str = ""
    failure: Failure | None = None
    effort: Effort = field(default=Effort(), compare=False)
    tally: dict[str, int] = field(default_factory=dict)
    commit: str = ""


class Source(Protocol):
    """Reads a shard into chunks on a CPU, without torch; pickled to the workers."""

    def read(self, shard: Shard) -> Iterator[DecodedChunk]:
        """Yield the shard's chunks in order, the final one with `last`; raise for an unreadable container."""
        ...


class Encoder(Protocol):
    """Turns one chunk into output tables; built once per actor, the same bytes for the same chunk always."""

    def encode(self, table: pa.Table, brought: Any = None) -> EncodedChunk:
        """Encode the rows; a chunk without rows gives tables without rows, with their schemas.

        `brought` is what `bring` gave for the same rows, and only saves time.
        """
        ...

    def bring(self, table: pa.Table) -> Any:
        """Bring to a GPU what encoding the rows will need there, while it may be at work on others; None for nothing."""
        ...


EncoderBuilder = Callable[[], Encoder]


def batch_shards(shards: Iterable[Shard]) -> list[list[Shard]]:
    """Group consecutive shards into decode tasks of at most 64 MB or 256 shards; a larger shard is alone.

    >>> [len(task) for task in batch_shards(Shard("p", "k", size) for size in (1 << 20, 1 << 20, 80 << 20, 1))]
    [2, 1, 1]
    """
    tasks: list[list[Shard]] = []
    room_bytes = 0
    for shard in shards:
        if not tasks or shard.size_bytes > room_bytes or len(tasks[-1]) == TASK_SHARDS:
            tasks.append([])
            room_bytes = TASK_BYTES
        tasks[-1].append(shard)
        room_bytes -= shard.size_bytes
    return tasks


def split_tasks(tasks: Iterable[list[Shard]], *, at_least: int) -> list[list[Shard]]:
    """Halve the tasks of most shards until there are so many, as far as shards go: for work that tasks share out.

    >>> shards = [Shard("p", str(number), 10) for number in range(5)]
    >>> [[int(shard.key) for shard in task] for task in split_tasks([shards], at_least=3)]
    [[0, 1], [2], [3, 4]]
    """
    found = list(tasks)
    while 0 < len(found) < at_least:
        at = max(range(len(found)), key=lambda number: len(found[number]))
        task = found[at]
        if len(task) == 1:
            break
        found[at : at + 1] = [task[: len(task) // 2], task[len(task) // 2 :]]
    return found


# -- the Arrow rows ---------------------------------------------------------------------------------------

_BUNDLE_SCHEMA = pa.schema([("headers", pa.string()), ("payload", pa.large_binary())])


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """A chunk, or a shard's failure, on its way to an encoder: what it is, and its rows."""

    header: dict[str, Any]
    table: pa.Table | None

    @property
    def num_rows(self) -> int:
        """Rows to encode."""
        return 0 if self.table is None else self.table.num_rows


def task_row(shards: Iterable[Shard]) -> dict[str, str]:
    """One decode task as a row of the input dataset."""
    return {"shards": json.dumps([asdict(shard) for shard in shards])}


def shards_of_task(batch: pa.Table) -> list[Shard]:
    """The shards of a batch of task rows."""
    return [Shard(**value) for row in batch["shards"].to_pylist() for value in json.loads(row)]


def pack_chunk(shard: Shard, index: int, chunk: DecodedChunk, effort: Effort | None = None) -> PackedChunk:
    """Pack a chunk, with what it has cost so far."""
    header = {
        "part": shard.part,
        "key": shard.key,
        "index": index,
        "last": chunk.last,
        "num_in": chunk.num_in,
        "num_filtered": chunk.num_filtered,
        "rejects": [asdict(reject) for reject in chunk.rejects],
        "effort": asdict(effort or Effort()),
    }
    return PackedChunk(header, chunk.table)


def pack_failure(shard: Shard, index: int, failure: Failure) -> PackedChunk:
    """Pack word of a shard that could not be read; it passes the encoder untouched."""
    header = {"part": shard.part, "key": shard.key, "index": index, "failure": asdict(failure)}
    return PackedChunk(header, None)


def bundles(packed: Iterable[PackedChunk], *, max_rows: int) -> Iterator[list[PackedChunk]]:
    """Bundle consecutive chunks while they have no more rows than one full chunk."""
    held: list[PackedChunk] = []
    for chunk in packed:
        if held and (
            len(held) == BUNDLE_CHUNKS or sum(one.num_rows for one in held) + chunk.num_rows > max_rows
        ):
            yield held
            held = []
        held.append(chunk)
        # At once: the chunk after a full one would be decoded first, and push this one's 10 MB out of the caches.
        if sum(one.num_rows for one in held) >= max_rows:
            yield held
            held = []
    if held:
        yield held


def bundle_row(packed: Sequence[PackedChunk]) -> pa.Table:
    """A bundle as a one-row table."""
    streams = [None if chunk.table is None else table_to_ipc(chunk.table) for chunk in packed]
    headers = [
        chunk.header | {"rows_bytes": None if stream is None else stream.size}
        for chunk, stream in zip(packed, streams, strict=True)
    ]
    rows = [stream for stream in streams if stream is not None]
    # The buffer of a single chunk becomes the column as it is: 40 MB are not copied once more.
    payload = rows[0] if len(rows) == 1 else pa.py_buffer(b"".join(rows))
    offsets = pa.array([0, payload.size], pa.int64()).buffers()[1]
    column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, payload])
    return pa.Table.from_arrays([pa.array([json.dumps(headers)], pa.string()), column], schema=_BUNDLE_SCHEMA)


def read_bundle(batch: pa.Table) -> Iterator[tuple[dict[str, Any], pa.Table | None]]:
    """The header and the rows (None: a failure) of every chunk of a bundle, the rows not copied."""
    assert batch.num_rows == 1, "one bundle is one block is one batch"
    payload, start = batch["payload"][0].as_buffer(), 0
    for header in json.loads(batch["headers"][0].as_py()):
        size = header.pop("rows_bytes")
        yield header, None if size is None else ipc_to_table(payload.slice(start, size))
        start += size or 0


def results_row(results: Iterable[ChunkResult]) -> pa.Table:
    """The results of a bundle as a one-row table."""
    return pa.table({"results": [json.dumps([asdict(result) for result in results])]})


def results_of(text: str) -> list[ChunkResult]:
    """Read a row of results back."""
    return [_result_of(value) for value in json.loads(text)]


def _result_of(value: dict[str, Any]) -> ChunkResult:
    failure, effort = value.pop("failure"), Effort(**value.pop("effort"))
    return ChunkResult(**value, failure=Failure(**failure) if failure else None, effort=effort)


def table_to_ipc(table: pa.Table) -> pa.Buffer:
    """Serialise a table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def ipc_to_table(buffer: pa.Buffer) -> pa.Table:
    """Read an Arrow IPC stream; the table's columns point into the buffer."""
    return pa.ipc.open_stream(buffer).read_all()
