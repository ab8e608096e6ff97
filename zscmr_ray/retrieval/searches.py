"""Searches: who asks, what is searched, and the scores of the two, by vectors or by pairs.

What it is: rows of a corpus laid out for one direction. What it is not: the protocol (`protocol.py`), metrics or ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval.scoring import LABEL, REGION, Block, block_columns, has_block, weigh_query

FloatArray = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

DIRECTIONS = ("image_to_text", "text_to_image")


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is known of the rows, whatever the method: N items, M captions (`text_item_M`: each one's item row).

    `labels` may be empty tuples; `partition_N` holds train, val or test. Raises DataError if the lengths disagree.
    """

    ids: Sequence[str]
    labels: Sequence[tuple[str, ...]]
    partition_N: npt.NDArray[np.str_]
    text_item_M: Rows

    def __post_init__(self) -> None:
        lengths = {len(self.ids), len(self.labels), len(self.partition_N)}
        if len(lengths) != 1 or (len(self.text_item_M) and int(self.text_item_M.max()) >= len(self.ids)):
            raise DataError("ids, labels, partitions and captions are not of the same items", got=lengths)

    def text_ids(self) -> list[str]:
        """Return each caption's id, `<item id>#<number of the caption in its item>`."""
        seen = [0] * len(self.ids)
        names = []
        for item in self.text_item_M.tolist():
            names.append(f"{self.ids[item]}#{seen[item]}")
            seen[item] += 1
        return names


class Ranking(Protocol):
    """One direction over chosen items: Q query rows, N gallery rows, the item each belongs to, and scores in blocks."""

    @property
    def query_items_Q(self) -> Rows:
        """The item of each query row."""
        ...

    @property
    def gallery_items_N(self) -> Rows:
        """The item of each gallery row."""
        ...

    @property
    def gallery_ids(self) -> list[str]:
        """The id of each gallery row."""
        ...

    def scores(self, start: int, stop: int) -> FloatArray:
        """Scores of the query rows [start, stop) with every gallery row."""
        ...


class Searchable(Protocol):
    """What the protocol evaluates: vectors (`Towers`) or scores of pairs (`pair_search.PairTowers`)."""

    def search(self, corpus: Corpus, *, query_items: Rows, gallery_items: Rows, direction: str) -> Ranking:
        """Lay out one direction."""
        ...


@dataclass(frozen=True, slots=True)
class Towers:
    """Vectors as they ask and as they are searched: image [N, D] and text [M, D], score = inner product."""

    image_query_ND: FloatArray
    text_query_MD: FloatArray
    image_gallery_ND: FloatArray
    text_gallery_MD: FloatArray

    @classmethod
    def symmetric(cls, image_ND: FloatArray, text_MD: FloatArray) -> Towers:
        """Build towers whose vectors are the same whether they ask or are searched."""
        return cls(image_ND, text_MD, image_ND, text_MD)

    def search(self, corpus: Corpus, *, query_items: Rows, gallery_items: Rows, direction: str) -> Search:
        """Lay out one direction; see `make_search`."""
        return make_search(
            self, corpus, query_items=query_items, gallery_items=gallery_items, direction=direction
        )


def variants(
    image_ND: FloatArray, text_MD: FloatArray, blocks: Sequence[Block], *, label_weight: float
) -> dict[str, Towers]:
    """Return the towers of each score the vectors allow: regions, labels, both (with `label_weight` on the query)."""
    found: dict[str, Towers] = {}
    for variant, name in (("regions", REGION), ("labels", LABEL)):
        if has_block(blocks, name):
            columns = block_columns(blocks, name)
            found[variant] = Towers.symmetric(image_ND[:, columns], text_MD[:, columns])
    if len(found) == 2:
        asked = [weigh_query(side, blocks, label_weight=label_weight) for side in (image_ND, text_MD)]
        found["both"] = Towers(asked[0], asked[1], image_ND, text_MD)
    return found


@dataclass(frozen=True, slots=True)
class Search:
    """One direction over chosen items: Q query rows, N gallery rows, and the item each of them belongs to."""

    query_QD: FloatArray
    gallery_ND: FloatArray
    query_items_Q: Rows
    gallery_items_N: Rows
    gallery_ids: list[str]

    def scores(self, start: int, stop: int) -> FloatArray:
        """Inner products of the query rows [start, stop) with every gallery row."""
        return self.query_QD[start:stop] @ self.gallery_ND.T


def make_search(
    towers: Towers, corpus: Corpus, *, query_items: Rows, gallery_items: Rows, direction: str
) -> Search:
    """Lay out one direction: images ask for the gallery items' captions, or captions ask for the gallery's images."""
    if direction == "image_to_text":
        rows = np.flatnonzero(np.isin(corpus.text_item_M, gallery_items))
        text_ids = corpus.text_ids()
        return Search(
            towers.image_query_ND[query_items],
            towers.text_gallery_MD[rows],
            query_items,
            corpus.text_item_M[rows],
            [text_ids[row] for row in rows.tolist()],
        )
    rows = np.flatnonzero(np.isin(corpus.text_item_M, query_items))
    return Search(
        towers.text_query_MD[rows],
        towers.image_gallery_ND[gallery_items],
        corpus.text_item_M[rows],
        gallery_items,
        [corpus.ids[row] for row in gallery_items.tolist()],
    )
