"""Exact inner-product search over unit-block vectors: the flat index behind `index.kind: flat`.

What it is: a gallery [N, D] of rows in id order, memory-mapped from `vectors.npy`, and the k best rows of each
(already weighted) query. Rows are float32, multiplied in place, or float16 (half the bytes, beside inverted lists),
converted a block at a time. Answers do not depend on the batch a query came in, on threads or on where a row lies:
candidates are proposed in float32, their scores are computed again in float64 row by row, and equal scores go to
the lower row, which is the smaller id. What it is not: an approximate index, or the owner of ids and captions.

Speed (docs/decisions.md, benchmarks/search_batch.py): a batch is one matrix product, of which the scores above the
worst kept one are taken in a single pass. One query is a matrix-vector product over all cores, where faiss uses one
core; on one core faiss's own kernel is the faster one and is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import DataError

FloatArray = npt.NDArray[np.float32]
StoredArray = npt.NDArray[np.float32] | npt.NDArray[np.float16]
RowArray = npt.NDArray[np.int64]

# Candidates asked for beyond k, so that near-ties at the boundary seldom need a second pass.
_SLACK = 16
# Relative error of a float32 inner product, generously: sqrt(D) roundings of 6e-8 at D = 4096 are 4e-6.
_SCORE_ERROR = 1e-5
# Rows scored at a time: filtered ones are gathered, so this bounds the copy (128 MiB at 512-d).
_BLOCK_ROWS = 65_536
_FIRST_ROWS = 512


@dataclass(frozen=True, slots=True)
class Hits:
    """The best rows of every query, best first: scores_QK float64 (hits of several galleries merge exactly), rows_QK."""

    scores_QK: npt.NDArray[np.float64]
    rows_QK: RowArray


class ExactIndex:
    """A gallery of vectors whose row order is id order. Raises DataError for rows not finite float32 or float16 [N, D].

    >>> index = ExactIndex(np.eye(3, dtype=np.float32))
    >>> hits = index.search(np.array([[0.0, 1.0, 0.5]], np.float32), k=2)
    >>> hits.rows_QK.tolist(), hits.scores_QK.tolist()
    ([[1, 2]], [[1.0, 0.5]])
    """

    def __init__(self, vectors_ND: StoredArray) -> None:
        if vectors_ND.ndim != 2 or vectors_ND.dtype not in (np.float32, np.float16):
            raise DataError(
                "not a table of vectors",
                got=f"{vectors_ND.dtype} {list(vectors_ND.shape)}",
                expected="float32 or float16 [N, D]",
            )
        self.vectors_ND = cast(StoredArray, np.ascontiguousarray(vectors_ND))
        self._max_norm = _max_norm(self.vectors_ND)

    @property
    def num_rows(self) -> int:
        """Rows N of the gallery."""
        return int(self.vectors_ND.shape[0])

    @property
    def dimension(self) -> int:
        """Columns D of the gallery."""
        return int(self.vectors_ND.shape[1])

    def search(self, queries_QD: FloatArray, *, k: int, allowed: npt.NDArray[np.bool_] | None = None) -> Hits:
        """Return the k rows with the largest inner products, best first, ties to the lower row.

        `queries_QD` are weighted already (`scoring.weigh_query`); `allowed` [N] keeps only its true rows. Raises
        DataError when a query has another dimension or is not finite, when k < 1, and when k exceeds the rows allowed.
        """
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        self.check(queries_QD, k=k, allowed=allowed)
        rows = None if allowed is None or allowed.all() else np.flatnonzero(allowed)
        num_searched = self.num_rows if rows is None else int(rows.size)
        scores_QK = np.empty((len(queries_QD), k), np.float64)
        rows_QK = np.empty((len(queries_QD), k), np.int64)
        approximate, candidates = self._propose(queries_QD, min(k + _SLACK, num_searched), rows)
        for q, query_D in enumerate(queries_QD):
            margin = 2 * _SCORE_ERROR * float(np.linalg.norm(query_D)) * self._max_norm
            threshold = approximate[q, k - 1] - margin
            if approximate.shape[1] < num_searched and approximate[q, -1] >= threshold:
                chosen = self._rows_above(query_D, threshold, rows)
            else:
                chosen = candidates[q][approximate[q] >= threshold]
            scores_QK[q], rows_QK[q] = self.settle(query_D, chosen, k=k)
        return Hits(scores_QK, rows_QK)

    def check(self, queries_QD: FloatArray, *, k: int, allowed: npt.NDArray[np.bool_] | None) -> None:
        """Refuse what `search` refuses; DataError."""
        if queries_QD.ndim != 2 or queries_QD.shape[1] != self.dimension:
            raise DataError(
                "the query is no vector of this index",
                got=f"shape {list(queries_QD.shape)}",
                expected=f"[queries, {self.dimension}]",
            )
        if not np.isfinite(queries_QD).all():
            raise DataError("the query vector holds NaN or infinity", expected="finite numbers")
        if k < 1:
            raise DataError("k must be at least 1", got=k, expected=">= 1")
        if allowed is not None and allowed.shape != (self.num_rows,):
            raise DataError("a filter masks every row", got=allowed.shape, expected=(self.num_rows,))
        available = self.num_rows if allowed is None else int(allowed.sum())
        if k > available:
            raise DataError(
                "k is larger than the gallery",
                got=f"k={k}",
                expected=f"at most {available} ({'all' if allowed is None else 'the filtered'} items)",
                remedy=f"ask for k <= {available}" if available else "drop the filter",
            )

    def _propose(
        self, queries_QD: FloatArray, num: int, rows: RowArray | None
    ) -> tuple[FloatArray, RowArray]:
        """The `num` best candidates by float32 scores, sorted, from all rows or from the given ones."""
        if (
            rows is None
            and self.vectors_ND.dtype == np.float32
            and len(queries_QD) == 1
            and faiss.omp_get_max_threads() == 1
        ):
            vectors_ND = cast(FloatArray, self.vectors_ND)
            return faiss.knn(queries_QD, vectors_ND, num, metric=faiss.METRIC_INNER_PRODUCT)
        total = self.num_rows if rows is None else int(rows.size)
        kept = _Kept(len(queries_QD), num)
        start = 0
        while start < total:
            # Growing blocks: the first ones set the threshold that lets the later ones pass few candidates.
            stop = min(total, start + min(_BLOCK_ROWS, max(_FIRST_ROWS, 3 * start)))
            block_ND = self.vectors_ND[start:stop] if rows is None else self.vectors_ND[rows[start:stop]]
            kept.add(block_ND.astype(np.float32, copy=False) @ queries_QD.T, first_row=start)
            start = stop
        return kept.scores_QK, kept.rows_QK if rows is None else rows[kept.rows_QK]

    def _rows_above(self, query_D: FloatArray, threshold: float, rows: RowArray | None) -> RowArray:
        """Every row whose float32 score reaches the threshold: many equal vectors lie at the boundary."""
        scores = [block_ND @ query_D for _, block_ND in _float_blocks(self.vectors_ND)]
        found = np.flatnonzero(np.concatenate(scores) >= threshold)
        return found if rows is None else np.intersect1d(found, rows, assume_unique=True)

    def settle(
        self, query_D: FloatArray, chosen: RowArray, *, k: int
    ) -> tuple[npt.NDArray[np.float64], RowArray]:
        """Return the k best of the candidate rows by float64 score, then row: scores [k], rows [k]."""
        scores = np.empty(chosen.size, np.float64)
        query = query_D.astype(np.float64)
        for start in range(0, chosen.size, _BLOCK_ROWS):
            block = self.vectors_ND[chosen[start : start + _BLOCK_ROWS]].astype(np.float64)
            block *= query
            # A sum over each row by itself: equal vectors get equal scores, wherever they lie.
            scores[start : start + _BLOCK_ROWS] = block.sum(axis=1)
        order = np.lexsort((chosen, -scores))[:k]
        return scores[order], chosen[order].astype(np.int64)

    def save(self, path: Path) -> None:
        """Write the gallery as a plain `.npy` file (64-byte aligned, so that it can be mapped and multiplied in place)."""
        with path.open("wb") as file:
            np.lib.format.write_array(file, self.vectors_ND, allow_pickle=False)


def load_exact(path: Path) -> ExactIndex:
    """Map a saved gallery into memory; raises DataError when the file is torn or is no such file."""
    try:
        mapped: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            "the index file cannot be read",
            got=f"{path.name}: {error}",
            expected="a float32 or float16 .npy table",
            remedy="run `zscmr index --overwrite`",
        ) from error
    return ExactIndex(mapped)


def recall_at_k(index: ExactIndex, queries_QD: FloatArray, *, k: int = 10) -> float:
    """Measure the share of each query's true k best (brute force in float64) that `search` returns, in [0, 1].

    A returned row counts when its brute-force score reaches the k-th best one, so that ties are no misses. k is cut
    to the gallery; the recall of no queries is 1.

    >>> recall_at_k(ExactIndex(np.eye(4, dtype=np.float32)), np.eye(4, dtype=np.float32), k=1)
    1.0
    """
    if not len(queries_QD):
        return 1.0
    k = min(k, index.num_rows)
    found_QK = index.search(queries_QD, k=k).rows_QK
    truth_QN = np.concatenate(
        [
            queries_QD.astype(np.float64) @ index.vectors_ND[start : start + 8192].astype(np.float64).T
            for start in range(0, index.num_rows, 8192)
        ],
        axis=1,
    )
    kth_Q = np.partition(truth_QN, -k, axis=1)[:, -k]
    found_scores_QK = np.take_along_axis(truth_QN, found_QK, axis=1)
    return float((found_scores_QK >= kth_Q[:, None] - 1e-12).mean())


class _Kept:
    """The best candidates so far of every query, best first."""

    def __init__(self, num_queries: int, num: int) -> None:
        self.scores_QK = np.full((num_queries, num), -np.inf, np.float32)
        self.rows_QK = np.zeros((num_queries, num), np.int64)

    def add(self, scores_NQ: FloatArray, *, first_row: int) -> None:
        """Merge the scores of one block of rows."""
        num_queries, num = self.scores_QK.shape
        passed = np.flatnonzero(scores_NQ > self.scores_QK[:, -1])
        if not passed.size:
            return
        rows, queries = np.divmod(passed, num_queries)
        queries = np.concatenate([np.repeat(np.arange(num_queries), num), queries])
        scores = np.concatenate([self.scores_QK.ravel(), scores_NQ.ravel()[passed]])
        rows = np.concatenate([self.rows_QK.ravel(), first_row + rows])
        order = np.lexsort((-scores, queries))
        # Every query has its old ones at least, so its `num` best are there.
        first_Q = np.searchsorted(queries[order], np.arange(num_queries))
        best_QK = order[first_Q[:, None] + np.arange(num)]
        self.scores_QK, self.rows_QK = scores[best_QK], rows[best_QK]


def _float_blocks(vectors_ND: StoredArray) -> Iterator[tuple[int, FloatArray]]:
    """The rows as float32, some at a time, each with the number of its first row."""
    for start in range(0, len(vectors_ND), _BLOCK_ROWS):
        yield start, vectors_ND[start : start + _BLOCK_ROWS].astype(np.float32, copy=False)


def _max_norm(vectors_ND: StoredArray) -> float:
    largest = 0.0
    for start, block in _float_blocks(vectors_ND):
        squares = np.einsum("nd,nd->n", block, block)
        if not np.isfinite(squares).all():
            row = start + int(np.flatnonzero(~np.isfinite(squares))[0])
            raise DataError(
                "a gallery vector holds NaN or infinity", got=f"row {row}", expected="finite rows"
            )
        largest = max(largest, float(squares.max(initial=0.0)))
    return float(np.sqrt(largest))
