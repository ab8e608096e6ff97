"""What flows between decode, encode and the driver: shards, chunks, results, and the Arrow rows that carry them.

One row is one chunk, whatever it holds: Ray Data must neither split nor join chunks, because a chunk is the unit of
encoding and with it of the output's bytes. Not the files of a stage: those are `staging.py` and `schema.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pyarrow as pa

# A chunk is cut at `chunk_rows` rows or here, whichever comes first: kept original images may be large.
CHUNK_BYTES = 64 << 20
# Shards of one decode task: many tiny ones share it, so that a task's fixed cost (about 10 ms) is paid once.
TASK_BYTES = 64 << 20
TASK_SHARDS = 256


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
    """What a chunk became: one table per output directory, and the rows that could not be encoded."""

    outputs: dict[str, pa.Table]
    rejects: tuple[RejectedRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a shard cannot be committed: a word for programs and a sentence for people."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Effort:
    """What some rows have cost so far (`effort.py`): CPU seconds, encoder's and storage's seconds by the clock, bytes."""

    decode_cpu_s: float = 0.0
    encode_cpu_s: float = 0.0
    encode_s: float = 0.0
    read_s: float = 0.0
    read_bytes: int = 0
    write_s: float = 0.0
    write_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """All that travels back to the driver: where the chunk's rows are and how many, or why there are none."""

    part: str
    index: int
    last: bool
    num_in: int = 0
    num_filtered: int = 0
    num_rejected: int = 0
    sha256: str = ""
    failure: Failure | None = None
    effort: Effort = field(default=Effort(), compare=False)


class Source(Protocol):
    """Reads a shard into chunks on a CPU, without torch; pickled to the workers."""

    def read(self, shard: Shard) -> Iterator[DecodedChunk]:
        """Yield the shard's chunks in order, the final one with `last`; raise for an unreadable container."""
        ...


class Encoder(Protocol):
    """Turns one chunk into output tables; built once per actor, the same bytes for the same chunk always."""

    def encode(self, table: pa.Table) -> EncodedChunk:
        """Encode the rows; a chunk without rows gives tables without rows, with their schemas."""
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


# -- the Arrow rows ---------------------------------------------------------------------------------------

_CHUNK_SCHEMA = pa.schema([("header", pa.string()), ("payload", pa.large_binary())])


def task_row(shards: Iterable[Shard]) -> dict[str, str]:
    """One decode task as a row of the input dataset."""
    return {"shards": json.dumps([asdict(shard) for shard in shards])}


def shards_of_task(batch: pa.Table) -> list[Shard]:
    """The shards of a batch of task rows."""
    return [Shard(**value) for row in batch["shards"].to_pylist() for value in json.loads(row)]


def chunk_row(shard: Shard, index: int, chunk: DecodedChunk, effort: Effort | None = None) -> pa.Table:
    """A chunk, and what it has cost so far, as a one-row table."""
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
    return _one_row(json.dumps(header), table_to_ipc(chunk.table))


def failed_row(shard: Shard, index: int, failure: Failure) -> pa.Table:
    """A shard that could not be read, as a one-row table that passes the encoder untouched."""
    header = {"part": shard.part, "key": shard.key, "index": index, "failure": asdict(failure)}
    return _one_row(json.dumps(header), None)


def _one_row(header: str, payload: pa.Buffer | None) -> pa.Table:
    # The payload's buffer becomes the column as it is: 40 MB a chunk are not copied once more.
    size = 0 if payload is None else payload.size
    offsets = pa.array([0, size], pa.int64()).buffers()[1]
    validity = None if payload is not None else pa.py_buffer(b"\x00")
    column = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 1, [validity, offsets, payload or pa.py_buffer(b"")]
    )
    return pa.Table.from_arrays([pa.array([header], pa.string()), column], schema=_CHUNK_SCHEMA)


def read_chunk_row(batch: pa.Table) -> tuple[dict[str, Any], pa.Table | None]:
    """The header of a chunk row and its rows (None for a failed one), without copying them."""
    assert batch.num_rows == 1, "one chunk is one block is one batch"
    payload = batch["payload"][0]
    table = ipc_to_table(payload.as_buffer()) if payload.is_valid else None
    return json.loads(batch["header"][0].as_py()), table


def result_row(result: ChunkResult) -> pa.Table:
    """A result as a one-row table."""
    return pa.table({"result": [json.dumps(asdict(result))]})


def result_of(text: str) -> ChunkResult:
    """Read a result row back."""
    value = json.loads(text)
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
