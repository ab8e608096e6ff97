"""The encode step: an actor that turns one bundle of chunks at a time into staged tables and a small row of results.

The model is built once per actor with a fixed number of torch threads: results depend on it in the last bits. Beside a GPU
Ray calls an actor from two threads: one chunk is encoded at a time, and meanwhile the next one's pixels travel through
pinned memory on a stream of their own, and the one before is written.
Exceptions are handled as in `decode.py`; if single rows are the cause, they are rejected and the rest is kept.
"""

from __future__ import annotations

import json
import threading
import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import pyarrow as pa

from zscmr_ray import errors
from zscmr_ray.errors import ZscmrError
from zscmr_ray.schema import RejectCode, rejected_schema
from zscmr_ray.stages.plane.chunks import (
    ChunkResult,
    Effort,
    EncodedChunk,
    Encoder,
    EncoderBuilder,
    Failure,
    RejectedRow,
    read_bundle,
    results_row,
)
from zscmr_ray.stages.plane.decode import failure_of
from zscmr_ray.stages.plane.staging import HeldChunks, end_attempt, note_attempt, write_chunk
from zscmr_ray.storage import Store

if TYPE_CHECKING:
    import torch
    from torch import Tensor

REJECTED = "rejected"
# The code of a failure that ends the run and is no shard's: the driver raises the error that its reason holds.
ENDS_RUN = "ends_run"
_REJECTS = rejected_schema({}).remove_metadata()


class EncodeChunks:
    """Callable class for `map_batches` over bundles, one per call; results are `held`, or staged where that has no room."""

    def __init__(
        self,
        build: EncoderBuilder,
        store: Store,
        *,
        max_failures: int,
        threads: int,
        held: HeldChunks | None = None,
    ) -> None:
        self.store, self.max_failures, self.held = store, max_failures, held
        self._encoder: Encoder | None = None
        self._build_error: ZscmrError | None = None
        self._turn = threading.Lock()
        set_torch_threads(threads)
        try:
            self._encoder = build()
        except ZscmrError as error:
            # Ray reports a failing constructor as a dead actor and loses an exception's cause on the way: it
            # travels as words with the first chunk instead.
            self._build_error = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode every chunk for itself, stage its tables, and say what they are."""
        return results_row([self.result(header, table) for header, table in read_bundle(batch)])

    def result(
        self, header: dict[str, Any], table: pa.Table | None, *, is_noted: bool = False
    ) -> ChunkResult:
        """Encode one chunk and stage its tables; no table is word of a failure, which passes.

        `is_noted`: a note of an attempt at the part stands already, by the process that would be lost.
        """
        if self._build_error is not None:
            return _failed(header, Failure(ENDS_RUN, error_to_json(self._build_error)))
        if table is None:
            return _failed(header, Failure(**header["failure"]))
        try:
            return self._encode(header, table) if is_noted else self._note_and_encode(header, table)
        except Exception as error:
            return _failed(header, failure_of(error))

    def _note_and_encode(self, header: dict[str, Any], table: pa.Table) -> ChunkResult:
        index = header["index"]
        attempt = note_attempt(self.store, header["part"], what=f"encode-{index:06d}")
        if refusal := attempt.refusal(self.max_failures, doing=f"while encoding chunk {index}"):
            return _failed(header, refusal)
        result = self._encode(header, table)
        end_attempt(self.store, attempt)
        return result

    def _encode(self, header: dict[str, Any], table: pa.Table) -> ChunkResult:
        part, index = header["part"], header["index"]
        assert self._encoder is not None
        brought = self._encoder.bring(table)
        with self._turn:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            encoded = encode_or_isolate(self._encoder, table, brought, shard_key=header["key"])
            encoded_s, encoded_cpu_s = time.perf_counter(), time.process_time()
        rejects = [RejectedRow(**reject) for reject in header["rejects"]] + list(encoded.rejects)
        tables = encoded.outputs | {REJECTED: rejects_table(rejects)}
        is_held = self.held is not None and self.held.put(part, index=index, tables=tables)
        sha256 = "" if is_held else write_chunk(self.store, part, index=index, tables=tables)
        effort = replace(
            Effort(**header["effort"]),
            encode_cpu_s=encoded_cpu_s - began_cpu_s,
            encode_s=encoded_s - began_s,
            write_s=time.perf_counter() - encoded_s,
            write_bytes=sum(rows.nbytes for rows in tables.values()),
        )
        return ChunkResult(
            part,
            index,
            last=header["last"],
            num_in=header["num_in"],
            num_filtered=header["num_filtered"],
            num_rejected=len(rejects),
            sha256=sha256,
            effort=effort,
            tally=encoded.tally,
        )


def encode_or_isolate(
    encoder: Encoder, table: pa.Table, brought: Any = None, *, shard_key: str
) -> EncodedChunk:
    """Encode a chunk; when that raises, reject the rows that also raise alone and encode the rest together.

    The outcome depends on the chunk only. Raises what the encoder raised when every row raises: then the encoder
    is at fault, not a row. The table needs the columns `id` and `source_offset`.
    """
    try:
        return encoder.encode(table, brought)
    except Exception as error:
        if table.num_rows == 0:
            raise
        reasons = [_raises_alone(encoder, table.slice(row, 1)) for row in range(table.num_rows)]
        if all(reasons) and table.num_rows > 1:
            raise
        bad = [row for row, reason in enumerate(reasons) if reason]
        if not bad:
            raise error
    kept = encoder.encode(table.filter(pa.array([reason is None for reason in reasons])))
    rejects = tuple(
        RejectedRow(
            table["id"][row].as_py(),
            shard_key,
            table["source_offset"][row].as_py(),
            "encode",
            RejectCode.ENCODE_FAILED,
            str(reasons[row]),
        )
        for row in bad
    )
    return EncodedChunk(kept.outputs, rejects + kept.rejects, kept.tally)


def rejects_table(rejects: list[RejectedRow]) -> pa.Table:
    """Rejected rows in the order of their offsets, as a table (the file's metadata is set at commit)."""
    ordered = sorted(rejects, key=lambda reject: reject.offset)
    columns = {name: [getattr(reject, name) for reject in ordered] for name in _REJECTS.names}
    return pa.table(columns, schema=_REJECTS) if ordered else _REJECTS.empty_table()


def set_torch_threads(threads: int) -> None:
    """Fix torch's threads in this process. Ray's own setting follows logical CPUs, which are only a schedule."""
    import torch

    torch.set_num_threads(threads)


def shared_tensor(array: npt.NDArray[Any]) -> Tensor:
    """An array of a chunk as a tensor over the same memory, which Ray shares and nobody may write to."""
    import torch

    with warnings.catch_warnings():
        # Said once of any read-only array. Models read their input and never write it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def on_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array of a chunk where the model is: as `shared_tensor` on a CPU, through pinned memory to a GPU.

    Returns when it is there; kernels of other threads go on meanwhile, as the copy has a stream of its own.
    """
    import torch

    tensor = shared_tensor(array)
    if device.type != "cuda":
        return tensor
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        copied = tensor.pin_memory().to(device, non_blocking=True)
    stream.synchronize()
    return copied


def error_to_json(error: ZscmrError) -> str:
    """Our own error as text, for `raise_what_ends_run` in another process."""
    texts = {name: getattr(error, name) for name in ("message", "got", "expected", "remedy")}
    texts = {name: None if value is None else str(value) for name, value in texts.items()}
    return json.dumps({"kind": type(error).__name__} | texts)


def raise_what_ends_run(failure: Failure | None) -> None:
    """Raise the error, written down by `error_to_json`, of a failure that no other shard would escape; pass any other."""
    if failure is None or failure.code != ENDS_RUN:
        return
    values = json.loads(failure.reason)
    kind: type[ZscmrError] = getattr(errors, values.pop("kind"), ZscmrError)
    raise kind(values.pop("message"), **values)


def _raises_alone(encoder: Encoder, row: pa.Table) -> str | None:
    try:
        encoder.encode(row)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _failed(header: dict[str, Any], failure: Failure) -> ChunkResult:
    last, num_in = header.get("last", True), header.get("num_in", 0)
    return ChunkResult(header["part"], header["index"], last=last, num_in=num_in, failure=failure)
