"""The one order of a ranking: score descending, ties by a hash of the id; and blocks of queries that bound memory.

What it is: integer sort keys, and the first k of a ranking. What it is not: a metric (`metrics.py`) or an index
(`exact.py`). Any tie order that follows row order or ids would leak classes (SCIENCE 4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import DataError

# Similarity cells of one block, 64 MB: a product of few rows would be bound by reading the gallery again for each.
BLOCK_ELEMENTS = 16_000_000
# Cells that are sorted or ranked at once: larger arrays fall out of the cache.
SORT_ELEMENTS = 1_000_000

FloatArray = npt.NDArray[np.float32]


def tie_ranks(ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return each id's place in the order of the ids' hashes, a permutation of 0..N-1 that ignores row order.

    >>> sorted(tie_ranks(["a", "b", "c"]).tolist())
    [0, 1, 2]
    """
    hashes = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
    order = sorted(range(len(ids)), key=list(zip(hashes, ids, strict=True)).__getitem__)
    ranks_N = np.empty(len(ids), np.int64)
    ranks_N[order] = np.arange(len(ids))
    return ranks_N


def sort_keys(similarity_BN: FloatArray, low_BN: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return int64 keys that sort ascending as (score descending, `low_BN` ascending); 0 <= low < 2**32.

    One integer sort is several times faster than an argsort and settles ties in the same pass.
    """
    require_finite(similarity_BN)
    # Everything below works in place, allocation costs more than arithmetic.
    bits_BN = (similarity_BN + np.float32(0)).view(np.int32)  # + 0: -0.0 ties with 0.0
    # A float's bits order as a signed integer once the negatives' magnitude bits are flipped; ~ reverses.
    descending_BN = bits_BN >> 31
    descending_BN &= np.int32(0x7FFFFFFF)
    descending_BN ^= bits_BN
    np.invert(descending_BN, out=descending_BN)
    keys_BN = descending_BN.astype(np.int64)
    keys_BN <<= 32
    keys_BN |= low_BN
    return keys_BN


def require_finite(similarity_BN: FloatArray) -> None:
    """Raise DataError if a score is NaN or infinite: it has no place in an order."""
    # One pass for what is nearly always so: a finite sum has finite terms. A sum that only overflowed is looked at again.
    with np.errstate(over="ignore", invalid="ignore"):
        total = similarity_BN.sum()
    if not np.isfinite(total) and not np.isfinite(similarity_BN).all():
        raise DataError(
            "a similarity is not a finite number",
            got=f"{int((~np.isfinite(similarity_BN)).sum())} NaN or infinite scores",
            expected="finite vectors",
            remedy="check the checkpoint: its training may have diverged",
        )


def top_hits(
    query_QD: FloatArray, gallery_ND: FloatArray, *, k: int, gallery_ids: Sequence[str]
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Return the rows and scores of the k best gallery items of each query, [Q, min(k, N)], best first.

    >>> rows, scores = top_hits(np.ones((1, 1), np.float32), np.array([[0.5], [2.0]], np.float32), k=9,
    ...                         gallery_ids=["a", "b"])
    >>> rows.tolist(), scores.tolist()
    ([[1, 0]], [[2.0, 0.5]])
    """
    kept = max(0, min(k, len(gallery_ND)))
    ties_N = tie_ranks(gallery_ids)
    row_of_tie_N = np.argsort(ties_N)
    rows = [np.zeros((0, kept), np.int64)]
    scores = [np.zeros((0, kept), np.float32)]
    for start, stop in query_blocks(len(query_QD), len(gallery_ND), num_cells=SORT_ELEMENTS):
        similarity_BN = query_QD[start:stop] @ gallery_ND.T
        keys_BN = sort_keys(similarity_BN, ties_N[None, :])
        keys_BN.sort(axis=1)
        rows_BK = row_of_tie_N[keys_BN[:, :kept] & 0xFFFFFFFF]
        rows.append(rows_BK)
        scores.append(np.take_along_axis(similarity_BN, rows_BK, axis=1))
    return np.concatenate(rows), np.concatenate(scores)


def query_blocks(
    num_queries: int, num_gallery: int, *, num_cells: int | None = None
) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of blocks of queries whose similarity cells fit `num_cells` (none = BLOCK_ELEMENTS)."""
    step = max(1, (num_cells or BLOCK_ELEMENTS) // max(1, num_gallery))
    for start in range(0, num_queries, step):
        yield start, min(start + step, num_queries)
