"""Are ids unique over all parts of a directory? In memory bounded by a partition of their hashes, not by the corpus.

Each id becomes 16 bytes of its BLAKE2 hash with its place; records are spread over files by the hash, and each file is
sorted by itself. Two different ids share a hash with a chance of about n^2 / 2^129.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("part", "<u4"), ("row", "<u4")])
Records = npt.NDArray[np.void]

# A hundred million ids are 10 MB a partition.
NUM_PARTITIONS = 256
_HELD_RECORDS = 1 << 19


def hash_ids(ids: list[str], *, part: int, first_row: int) -> Records:
    """The records of consecutive rows of a part."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=16).digest() for name in ids)
    records = np.zeros(len(ids), RECORD)
    pairs = np.frombuffer(digests, "<u8").reshape(-1, 2)
    records["high"], records["low"] = pairs[:, 0], pairs[:, 1]
    records["part"] = part
    records["row"] = np.arange(first_row, first_row + len(ids), dtype=np.uint32)
    return records


class IdPartitions:
    """Collects the records of all parts in a scratch folder; `repeated` then finds those whose hash came before."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._held: list[Records] = []
        self._num_held = 0

    def add(self, records: Records) -> None:
        """Take the records of some rows."""
        self._held.append(records)
        self._num_held += len(records)
        if self._num_held >= _HELD_RECORDS:
            self._spill()

    def repeated(self) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Yield (part, row) of an id and of its first occurrence, for every occurrence but the first."""
        self._spill()
        for path in sorted(self._scratch.glob("ids-*")):
            records = np.fromfile(path, RECORD)
            keys = ("row", "part", "low", "high")  # the last is the first to sort by
            records = records[np.lexsort([records[name] for name in keys])]
            same = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
            for index in np.flatnonzero(same).tolist():
                earlier, later = records[index], records[index + 1]
                yield (int(later["part"]), int(later["row"])), (int(earlier["part"]), int(earlier["row"]))

    def _spill(self) -> None:
        if not self._num_held:
            return
        records = np.concatenate(self._held)
        partition = (records["high"] % NUM_PARTITIONS).astype(np.int64)
        order = np.argsort(partition, kind="stable")
        bounds = np.searchsorted(partition[order], np.arange(NUM_PARTITIONS + 1))
        for number in range(NUM_PARTITIONS):
            chosen = order[bounds[number] : bounds[number + 1]]
            if len(chosen):
                with (self._scratch / f"ids-{number:03d}").open("ab") as file:
                    records[chosen].tofile(file)
        self._held, self._num_held = [], 0
