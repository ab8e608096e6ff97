"""Rows that are the same: by the hash of their contents, or by the cosine of their vectors.

What it is: groups of equal hashes, and groups of rows joined by near pairs (a near b, b near c: one group of three,
whatever a and c are to each other). Near pairs are found exactly, every row against every other in blocks: N (N - 1) / 2
cosines, memory of three blocks and a few numbers a row. A pair that float32 leaves in doubt is computed again in
float64, so that groups depend on the vectors and the threshold alone. What it is not: the owner of ids or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]
RowArray = npt.NDArray[np.int64]

# A block of cosines is 16 MiB; larger ones gain nothing and fall out of the cache.
BLOCK_ROWS = 2048
# Error of a float32 cosine, generously (as in exact.py), and of a float64 one.
_COSINE_ERROR = 1e-5
_EXACT_ERROR = 1e-9


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows that share a group with another: `rows_M` by group and then by `rank`, `first_M` their group's first row."""

    rows_M: RowArray
    first_M: RowArray

    @property
    def num_groups(self) -> int:
        """Groups of two rows or more."""
        return int((self.rows_M == self.first_M).sum())


def equal_groups(digests_N: npt.NDArray[np.bytes_], *, rank_N: RowArray) -> Groups:
    """Group rows with equal digests; an empty digest equals nothing. `rank_N` orders the rows of a group.

    >>> found = equal_groups(np.array([b"x", b"y", b"x", b""], "S32"), rank_N=np.array([2, 1, 0, 3]))
    >>> found.rows_M.tolist(), found.first_M.tolist()
    ([2, 0], [2, 2])
    """
    rows = np.flatnonzero(digests_N != b"")
    _, label = np.unique(digests_N[rows], return_inverse=True)
    label_N = np.arange(len(digests_N), dtype=np.int64) + len(digests_N)
    label_N[rows] = label
    return _grouped(label_N, rank_N)


def near_groups(
    read: Callable[[int, int], HalfArray],
    *,
    threshold: float,
    rank_N: RowArray,
    advance: Callable[[int], None] | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Groups:
    """Group rows joined by pairs whose cosine is at least `threshold`.

    `read(start, stop)` gives stored vectors [B, D], of any length but zero; `advance` is told how many pairs were
    compared. The result depends on neither `block_rows` nor the order of the rows.
    """
    num_rows = len(rank_N)
    joined = _Joined(num_rows, threshold)
    for first in range(0, num_rows, block_rows):
        left = _Block(read(first, min(first + block_rows, num_rows)), first)
        for second in range(first, num_rows, block_rows):
            right = (
                left if second == first else _Block(read(second, min(second + block_rows, num_rows)), second)
            )
            joined.add(left, right)
            if advance is not None:
                same = left is right
                advance(left.size * (left.size - 1) // 2 if same else left.size * right.size)
    return _grouped(joined.roots(np.arange(num_rows)), rank_N)


def cosines(left_MD: HalfArray, right_MD: HalfArray) -> npt.NDArray[np.float64]:
    """The cosine of each row with the same row of the other table, in float64; 0 for a zero vector.

    >>> cosines(np.array([[3, 4]], np.float16), np.array([[4, 3]], np.float16)).tolist()
    [0.96]
    """
    left, right = left_MD.astype(np.float64), right_MD.astype(np.float64)
    # A sum over each row by itself: a pair has one cosine, wherever it is computed.
    norms = np.sqrt((left * left).sum(axis=1) * (right * right).sum(axis=1))
    return np.asarray((left * right).sum(axis=1) / np.where(norms == 0.0, 1.0, norms))


def num_pairs(num_rows: int) -> int:
    """Comparisons that `near_groups` makes.

    >>> num_pairs(200_000)
    19999900000
    """
    return num_rows * (num_rows - 1) // 2


class _Block:
    """Consecutive rows: as stored, and as float32 unit vectors."""

    def __init__(self, stored_BD: HalfArray, first: int) -> None:
        self.stored_BD, self.first, self.size = stored_BD, first, len(stored_BD)
        wide_BD = stored_BD.astype(np.float64)
        norms_B = np.sqrt((wide_BD * wide_BD).sum(axis=1))
        self.unit_BD = (wide_BD / np.where(norms_B == 0.0, 1.0, norms_B)[:, None]).astype(np.float32)


class _Joined:
    """Union-find over rows; a root is the smallest row of its tree."""

    def __init__(self, num_rows: int, threshold: float) -> None:
        self._parent = np.arange(num_rows, dtype=np.int64)
        self._threshold = threshold

    def roots(self, rows: RowArray) -> RowArray:
        """The root of each row; paths are shortened on the way."""
        found = self._parent[rows]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[rows] = found
        return found

    def add(self, left: _Block, right: _Block) -> None:
        """Join every near pair of two blocks (of one block: every pair of different rows)."""
        cosine_BB = left.unit_BD @ right.unit_BD.T
        near_BB = cosine_BB >= np.float32(self._threshold - _COSINE_ERROR)
        if left is right:
            near_BB &= np.triu(np.ones(near_BB.shape, np.bool_), k=1)
        for row in np.flatnonzero(near_BB.any(axis=1)).tolist():
            others = np.flatnonzero(near_BB[row])
            self._join(left, right, row, others, cosine_BB[row, others])

    def _join(self, left: _Block, right: _Block, row: int, others: RowArray, cosine_M: FloatArray) -> None:
        root = self.roots(np.array([left.first + row]))
        roots = self.roots(right.first + others)
        # Most pairs of a large group are in it already and need no second look.
        new = roots != root
        doubtful = new & (cosine_M < self._threshold + _COSINE_ERROR)
        if doubtful.any():
            pairs = others[doubtful]
            exact = cosines(
                np.repeat(left.stored_BD[row : row + 1], len(pairs), axis=0), right.stored_BD[pairs]
            )
            new[doubtful] = exact >= self._threshold - _EXACT_ERROR
        if new.any():
            together = np.concatenate([root, roots[new]])
            self._parent[together] = together.min()


def _grouped(label_N: RowArray, rank_N: RowArray) -> Groups:
    """Groups of equal labels with two rows or more, in the order of their first rows' rank."""
    order = np.lexsort((rank_N, label_N))
    labels = label_N[order]
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]][: len(labels)])
    sizes = np.diff(np.r_[starts, len(labels)])
    first_M = np.repeat(order[starts], sizes)
    many = np.repeat(sizes > 1, sizes)
    rows_M, first_M = order[many], first_M[many]
    by_rank = np.lexsort((rank_N[rows_M], rank_N[first_M]))
    return Groups(rows_M[by_rank].astype(np.int64), first_M[by_rank].astype(np.int64))
