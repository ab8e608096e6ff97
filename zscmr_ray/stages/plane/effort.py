"""What the rows of a run cost, step by step: seconds and bytes that travel with chunks to the driver, never into output.

Decoding and encoding are counted in CPU seconds, which other work on the same cores does not change; time in storage by
the clock. Not what follows from them: `bottleneck.py`, `forecast.py`.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import BinaryIO

from zscmr_ray.stages.plane.chunks import DecodedChunk, Effort
from zscmr_ray.storage import Store

# Large reads pass it by; a small one shows how far a reader is, to within this.
_BUFFER_BYTES = 8 << 10


class _Reads:
    """Seconds and bytes of this process's reads of shards so far."""

    seconds = 0.0
    num_bytes = 0


def timed_open(store: Store) -> Callable[[str], BinaryIO]:
    """The store's `open`, with the time and bytes of every read counted in this process."""

    def open_timed(key: str) -> BinaryIO:
        started_s = time.perf_counter()
        file = store.open(key)
        _Reads.seconds += time.perf_counter() - started_s
        return io.BufferedReader(_TimedFile(file), _BUFFER_BYTES)

    return open_timed


class _TimedFile(io.RawIOBase):
    """A file whose reads are counted."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        started_s = time.perf_counter()
        num_bytes = self._file.readinto(buffer)  # type: ignore[attr-defined]
        _Reads.seconds += time.perf_counter() - started_s
        _Reads.num_bytes += num_bytes
        return int(num_bytes)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def timed_chunks(chunks: Iterator[DecodedChunk]) -> Iterator[tuple[DecodedChunk, Effort]]:
    """Each chunk with what reading and decoding it cost; reads count as storage, the rest of the CPU time as decoding."""
    while True:
        cpu_s, read_s, read_bytes = time.process_time(), _Reads.seconds, _Reads.num_bytes
        chunk = next(chunks, None)
        if chunk is None:
            return
        yield (
            chunk,
            Effort(
                decode_cpu_s=time.process_time() - cpu_s,
                read_s=_Reads.seconds - read_s,
                read_bytes=_Reads.num_bytes - read_bytes,
            ),
        )


def total(efforts: Iterator[Effort]) -> Effort:
    """The sum of efforts, field by field.

    >>> total(iter([Effort(encode_s=1.0, write_bytes=2), Effort(encode_s=0.5)])).encode_s
    1.5
    """
    found = list(efforts)
    return Effort(
        **{field.name: sum(getattr(effort, field.name) for effort in found) for field in fields(Effort)}
    )
