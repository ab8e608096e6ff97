"""Inverted lists of quantised vectors, the candidates re-scored exactly: the index behind `index.kind: ivf`.

    rank      the lists by <query, centroid>; how many of them are read is tuned per direction (ivf_tuning.py)
    scan      faiss scores the quantised vectors of these lists and proposes candidates, more than k of them
    re-score  the candidates in float64 from the stored vectors; equal scores go to the lower row, the smaller id

What it is: reading and searching such lists, mapped from a faiss file. What it is not: their making (ivf_build.py).
An answer does not depend on the batch it came in: each query's lists are ranked by a product of its own and scanned by
themselves. A filter is applied before the search: it reads on through the lists until it has seen as many allowed rows
as an unfiltered search sees, or all of them; a filter that leaves few rows is searched exactly instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval.exact import ExactIndex, FloatArray, Hits, RowArray

Mask = npt.NDArray[np.bool_]
# Candidates for each of the k results, by quantiser: what its rounding may put before a true neighbour.
OVERSAMPLING = {"none": 1, "sq8": 2, "pq": 12}
_MIN_CANDIDATES = 32
# A filter that leaves no more rows than this is searched exactly: gathering them takes less than ranking and scanning.
EXACT_ROWS = 4096


@dataclass(frozen=True, slots=True)
class _Probes:
    """The lists that queries read: lists_QP int64, padded with -1, and the queries' products with their centroids."""

    lists_QP: RowArray
    scores_QP: FloatArray


class IvfIndex:
    """Inverted lists over the rows of an exact index. Raises DataError when the two are not of the same rows."""

    # `lists` is a faiss.IndexIVF, whose stubs lack what is used of it here.
    def __init__(self, exact: ExactIndex, lists: Any, *, quantizer: str) -> None:
        if (lists.ntotal, lists.d) != (exact.num_rows, exact.dimension):
            raise DataError(
                "inverted lists and vectors disagree",
                got=f"lists of {lists.ntotal} x {lists.d}, vectors {exact.num_rows} x {exact.dimension}",
                expected="the same rows and columns",
                remedy="run `zscmr index --overwrite`",
            )
        self.exact = exact
        self._lists, self._quantizer = lists, quantizer
        self._centroids_LD = np.ascontiguousarray(lists.quantizer.reconstruct_n(0, lists.nlist))
        self.list_sizes_L = np.array(
            [self._lists.invlists.list_size(number) for number in range(lists.nlist)], np.int64
        )
        self.list_of_N = self._list_of_rows()

    @property
    def num_rows(self) -> int:
        """Rows N."""
        return self.exact.num_rows

    @property
    def num_lists(self) -> int:
        """Lists L."""
        return int(self._lists.nlist)

    def search(
        self,
        queries_QD: FloatArray,
        *,
        k: int,
        num_probed_Q: npt.NDArray[np.int64] | int,
        allowed: Mask | None = None,
    ) -> Hits:
        """Return k rows of large inner products, best first, reading the `num_probed_Q` best lists of each query.

        Always k rows: a query whose lists hold fewer allowed ones is searched exactly. Raises DataError as
        `ExactIndex.search`.
        """
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        self.exact.check(queries_QD, k=k, allowed=allowed)
        num_allowed = self.num_rows if allowed is None else int(allowed.sum())
        if num_allowed <= max(EXACT_ROWS, k):
            return self.exact.search(queries_QD, k=k, allowed=allowed)
        num_probed_Q = np.broadcast_to(np.asarray(num_probed_Q, np.int64), (len(queries_QD),))
        allowed = None if num_allowed == self.num_rows else allowed
        probes = self._probe(queries_QD, num_probed_Q, allowed)
        candidates_QR = self._scan(queries_QD, probes, k=k, allowed=allowed)
        scores_QK = np.empty((len(queries_QD), k), np.float64)
        rows_QK = np.empty((len(queries_QD), k), np.int64)
        for q, query_D in enumerate(queries_QD):
            chosen = candidates_QR[q][candidates_QR[q] >= 0]
            if len(chosen) < k:
                found = self.exact.search(query_D[None], k=k, allowed=allowed)
                scores_QK[q], rows_QK[q] = found.scores_QK[0], found.rows_QK[0]
            else:
                scores_QK[q], rows_QK[q] = self.exact.settle(query_D, chosen, k=k)
        return Hits(scores_QK, rows_QK)

    def rank_lists(self, query_D: FloatArray) -> tuple[RowArray, FloatArray]:
        """Return all lists, best first, and the query's product with every list's centroid (by list)."""
        # One query at a time: rows of a product of matrices round differently with the number of queries in it.
        scores_L = self._centroids_LD @ query_D
        return np.argsort(-scores_L, kind="stable"), scores_L

    def _probe(self, queries_QD: FloatArray, num_probed_Q: RowArray, allowed: Mask | None) -> _Probes:
        chosen = []
        counts_L = None if allowed is None else np.bincount(self.list_of_N[allowed], minlength=self.num_lists)
        for query_D, num_probed in zip(queries_QD, num_probed_Q.tolist(), strict=True):
            order_L, scores_L = self.rank_lists(query_D)
            if counts_L is not None:
                wanted = int(self.list_sizes_L[order_L[:num_probed]].sum())
                num_probed = int(np.searchsorted(np.cumsum(counts_L[order_L]), wanted)) + 1
            lists = order_L[:num_probed]
            chosen.append((lists, scores_L[lists]))
        width = max((len(lists) for lists, _ in chosen), default=1)
        lists_QP = np.full((len(chosen), width), -1, np.int64)
        scores_QP = np.zeros((len(chosen), width), np.float32)
        for q, (lists, scores) in enumerate(chosen):
            lists_QP[q, : len(lists)], scores_QP[q, : len(lists)] = lists, scores
        return _Probes(lists_QP, scores_QP)

    def _scan(self, queries_QD: FloatArray, probes: _Probes, *, k: int, allowed: Mask | None) -> RowArray:
        """Candidate rows [Q, R] by quantised scores, -1 where the lists hold fewer."""
        num_queries = len(queries_QD)
        num = min(max(_MIN_CANDIDATES, OVERSAMPLING[self._quantizer] * k), self.num_rows)
        scores_QR = np.empty((num_queries, num), np.float32)
        rows_QR = np.empty((num_queries, num), np.int64)
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        selector = None if bits is None else faiss.IDSelectorBitmap(self.num_rows, faiss.swig_ptr(bits))
        make: Any = faiss.SearchParametersIVF
        parameters = make(nprobe=probes.lists_QP.shape[1], sel=selector)
        # faiss's wrapper sets nprobe on the index, which other threads read; the call below it takes parameters.
        self._lists.search_preassigned_c(
            num_queries,
            faiss.swig_ptr(queries_QD),
            num,
            faiss.swig_ptr(probes.lists_QP),
            faiss.swig_ptr(probes.scores_QP),
            faiss.swig_ptr(scores_QR),
            faiss.swig_ptr(rows_QR),
            False,
            parameters,
        )
        return rows_QR

    def _list_of_rows(self) -> npt.NDArray[np.int32]:
        list_of_N = np.full(self.num_rows, -1, np.int32)
        lists = self._lists.invlists
        for number, size in enumerate(self.list_sizes_L.tolist()):
            if size:
                ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
                list_of_N[ids] = number
        if (list_of_N < 0).any():
            raise DataError(
                "rows are in no inverted list",
                got=int((list_of_N < 0).sum()),
                expected=0,
                remedy="run `zscmr index --overwrite`",
            )
        return list_of_N


def load_ivf(path: Path, exact: ExactIndex, *, quantizer: str) -> IvfIndex:
    """Map inverted lists into memory; raises DataError when the file is torn or belongs to other vectors."""
    try:
        lists = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise DataError(
            "the index file cannot be read",
            got=f"{path.name}: {str(error).splitlines()[0]}",
            expected="inverted lists as faiss writes them",
            remedy="run `zscmr index --overwrite`",
        ) from error
    if not isinstance(lists, faiss.IndexIVF):
        raise DataError("not an index of inverted lists", got=f"{path.name}: {type(lists).__name__}")
    return IvfIndex(exact, lists, quantizer=quantizer)
