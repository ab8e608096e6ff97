"""The making of inverted lists: k-means on a sample of the gallery, every row into the list of its nearest centroid.

Centroids are unit vectors and nearness is the inner product, as in the search: with plain means the longest one drew ten
times its share of rows. The seed is fixed, so that the same vectors give the same lists (one machine, one faiss).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from zscmr_ray.retrieval.exact import FloatArray, RowArray, StoredArray

_SEED = 1234
_ITERATIONS = 10
# Sample of k-means, rows for each list.
_ROWS_PER_LIST = 48
_BLOCK_ROWS = 65_536


def build_lists(
    vectors_ND: StoredArray, *, num_lists: int, quantizer: str, left_out: RowArray | None = None
) -> faiss.IndexIVF:
    """Train and fill inverted lists over all rows; rows `left_out` (held-out queries) are not in the k-means sample."""
    dimension = vectors_ND.shape[1]
    # faiss's stubs know the base class only.
    lists: Any = faiss.index_factory(
        dimension, f"IVF{num_lists},{_codec(quantizer, dimension)}", faiss.METRIC_INNER_PRODUCT
    )
    lists.cp.seed, lists.cp.niter, lists.cp.spherical = _SEED, _ITERATIONS, True
    # The sample is drawn here.
    lists.cp.max_points_per_centroid, lists.cp.min_points_per_centroid = 2**31 - 1, 1
    if quantizer == "pq":
        lists.pq.cp.min_points_per_centroid, lists.pq.cp.niter = 1, _ITERATIONS
    lists.train(_sample(vectors_ND, num=num_lists * _ROWS_PER_LIST, left_out=left_out))
    for start in range(0, len(vectors_ND), _BLOCK_ROWS):
        lists.add(vectors_ND[start : start + _BLOCK_ROWS].astype(np.float32, copy=False))
    built: faiss.IndexIVF = lists
    return built


def write_lists(path: Path, lists: faiss.IndexIVF) -> None:
    """Write inverted lists in faiss's own format, which maps back into memory."""
    faiss.write_index(lists, str(path))


def code_bytes(quantizer: str, dimension: int) -> int:
    """Bytes of a quantised vector in the lists.

    >>> [code_bytes(name, 512) for name in ("none", "sq8", "pq")]
    [2048, 512, 128]
    """
    return {"none": 4 * dimension, "sq8": dimension, "pq": _pq_parts(dimension)}[quantizer]


def _codec(quantizer: str, dimension: int) -> str:
    match quantizer:
        case "none":
            return "Flat"
        case "sq8":
            return "SQ8"
        case "pq":
            return f"PQ{_pq_parts(dimension)}"
    raise AssertionError(f"unknown quantiser {quantizer}")


def _pq_parts(dimension: int) -> int:
    """The most parts of at least four columns that divide the vector evenly (one byte each).

    >>> _pq_parts(512), _pq_parts(1512), _pq_parts(10)
    (128, 378, 2)
    """
    return max(parts for parts in range(1, max(1, dimension // 4) + 1) if dimension % parts == 0)


def _sample(vectors_ND: StoredArray, *, num: int, left_out: RowArray | None) -> FloatArray:
    rows = np.arange(len(vectors_ND))
    if left_out is not None and len(left_out) < len(rows) // 2:
        rows = np.delete(rows, left_out)
    if len(rows) > num:
        rows = np.sort(np.random.default_rng(_SEED).choice(rows, num, replace=False))
    return vectors_ND[rows].astype(np.float32)
