"""How many rows of a row group may be decoded at once: by what they may come to, not by their number.

Only what pyarrow says of whole row groups is used: its metadata of a damaged column chunk ends the process.
"""

from __future__ import annotations

from typing import Any

from zscmr_ray.errors import DataError

MAX_BATCH_ROWS = 256
_BATCH_BYTES = 64 << 20
# Pictures hardly shrink and text shrinks tenfold. Below this size whatever it holds is harmless.
_MAX_RATIO, _HARMLESS_BYTES = 200, 256 << 20


def rows_at_a_time(group: Any, *, file_bytes: int, where: str) -> int:
    """Return how many rows of a row group to decode at once, 1 to 256; `group` is its metadata.

    Raises DataError for a row group that expands out of all proportion to its file.
    """
    if group.total_byte_size > max(_HARMLESS_BYTES, _MAX_RATIO * file_bytes):
        raise DataError(
            f"{where}: a decompression bomb",
            got=f"a row group of {group.total_byte_size} bytes in a file of {file_bytes}",
            expected="text or pictures",
            remedy="write the shard again, or leave it out",
        )
    row_bytes = group.total_byte_size // max(1, group.num_rows)
    return max(1, min(MAX_BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)))
