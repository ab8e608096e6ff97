"""The mapped index of one run: opened once with its checksums verified, then searched in batches.

What it is: the reader of what stages/index wrote, for both sides, and the one place where a batch of requests with
different targets, filters and k becomes as few searches as possible. What it is not: an encoder or an HTTP service.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.manifest import require_manifest
from zscmr_ray.models.base import VectorBlock
from zscmr_ray.retrieval.exact import Hits
from zscmr_ray.retrieval.ivf_tuning import label_weights
from zscmr_ray.retrieval.side_index import SideIndex
from zscmr_ray.serving.heat import item_regions
from zscmr_ray.serving.part import GalleryPart
from zscmr_ray.serving.wire import DEFAULT_K, Item, SearchHit, Target
from zscmr_ray.stages.index.opening import open_sides
from zscmr_ray.storage import Store

FloatArray = npt.NDArray[np.float32]
SIDES: tuple[Target, ...] = ("image", "text")


@dataclass(frozen=True, slots=True)
class SearchTask:
    """One weighted query vector [D], the side to search, how many results, and column -> accepted values.

    `asked` is the side the query is of, which decides how much of an approximate index is read; None = not known.
    """

    query_D: FloatArray
    target: Target
    k: int | None
    conditions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    asked: Target | None = None


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """The results of one task, best first, why there are fewer than asked for, and what share of the rows was searched.

    `available` = rows that meet the filter.
    """

    hits: tuple[SearchHit, ...]
    notes: tuple[str, ...] = ()
    available: int = 0
    coverage: float = 1.0
    degraded: tuple[str, ...] = ()


class Searcher:
    """Both sides of an index. Raises DataError when the index is missing, torn or not what its manifest says.

    `share` = (number, of how many): only that share of each side's rows is searched; look-ups know every row.
    """

    def __init__(self, store: Store, *, share: tuple[int, int] = (0, 1)) -> None:
        manifest = require_manifest(store, "index")
        self._scratch = contextlib.ExitStack()
        sides = open_sides(store, manifest, self._scratch)
        self.version = manifest.fingerprint
        self.info: dict[str, Any] = dict(manifest.info)
        self.counts = dict(manifest.counts)
        self.fingerprint = str(manifest.info["fingerprint"])
        self.blocks = tuple(VectorBlock(b["name"], b["start"], b["stop"]) for b in manifest.info["blocks"])
        self._galleries: dict[Target, SideIndex] = {side: sides[side] for side in SIDES if side in sides}
        self._parts = {side: GalleryPart(gallery, share) for side, gallery in self._galleries.items()}

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.blocks[-1].stop

    def close(self) -> None:
        """Delete the local copies of a remote index; the mapping of what is still in use outlives them."""
        self._scratch.close()

    def gallery(self, target: Target) -> SideIndex:
        """The side asked for; DataError when this index has none."""
        if target not in self._galleries:
            raise DataError(
                f"this index holds no {target} vectors",
                got=f"target {target}",
                expected=", ".join(self._galleries),
            )
        return self._galleries[target]

    def check_k(self, target: Target, k: int | None) -> None:
        """Refuse a k that exceeds the side asked for; DataError."""
        num_rows = self.gallery(target).num_rows
        if k is not None and k > num_rows:
            raise DataError(
                "k is larger than the gallery",
                got=f"k={k}",
                expected=f"at most {num_rows} ({target} vectors in this index)",
                remedy=f"ask for k <= {num_rows}",
            )

    def side_of(self, row_id: str) -> Target | None:
        """The side on which an id is, or None when neither has it."""
        found = self._find(row_id)
        return None if found is None else found[0]

    def vector_of(self, row_id: str) -> FloatArray | None:
        """The stored vector [D] of an item or caption, or None when no side has that id."""
        found = self._find(row_id)
        return None if found is None else self._galleries[found[0]].vector_of(found[1])

    def item(self, row_id: str) -> Item | None:
        """What is known of an item or caption, or None when no side has that id."""
        found = self._find(row_id)
        if found is None:
            return None
        side, row = found
        gallery, images = self._galleries[side], self._galleries.get("image")
        image_row = None if images is None else images.row_of(gallery.item_id_of(row))
        return Item(
            id=row_id,
            item_id=gallery.item_id_of(row),
            side=side,
            labels=list(gallery.labels_of(row)),
            captions=list(gallery.captions_of(row)),
            thumbnail_url=self._thumbnail_url(gallery.item_id_of(row)),
            regions=(
                None
                if images is None or image_row is None
                else item_regions(images, image_row, self.info.get("crop"))
            ),
        )

    def thumbnail(self, row_id: str) -> bytes | None:
        """The JPEG of an item, or of a caption's item; None when there is no such id or no picture of it."""
        found = self._find(row_id)
        if found is None or "image" not in self._galleries:
            return None
        images = self._galleries["image"]
        row = images.row_of(self._galleries[found[0]].item_id_of(found[1]))
        return None if row is None else images.thumbnail_of(row)

    def search(self, tasks: Sequence[SearchTask]) -> list[SearchOutcome]:
        """Answer a batch of tasks; those with the same target and filter share one search."""
        groups: dict[tuple[Target, tuple[tuple[str, tuple[str, ...]], ...]], list[int]] = {}
        for number, task in enumerate(tasks):
            groups.setdefault((task.target, task.conditions), []).append(number)
        outcomes: list[SearchOutcome] = [SearchOutcome(())] * len(tasks)
        for (target, conditions), numbers in groups.items():
            gallery, part = self.gallery(target), self._parts[target]
            mask = part.mask(dict(conditions))
            available = part.num_rows if mask is None else int(mask.sum())
            wanted = [tasks[number].k or DEFAULT_K for number in numbers]
            largest = min(max(wanted), available)
            found: Hits | None = None
            if largest:
                queries_QD = np.stack([tasks[number].query_D for number in numbers])
                found = part.search(
                    queries_QD,
                    k=largest,
                    allowed=mask,
                    asked=[tasks[number].asked for number in numbers],
                    label_weights=label_weights(queries_QD, self.blocks).tolist(),
                )
            for place, (number, k) in enumerate(zip(numbers, wanted, strict=True)):
                hits = () if found is None else self._hits(gallery, found, place=place, k=min(k, available))
                is_short = bool(conditions) and available < k
                notes = (too_few(available, k),) if is_short else ()
                outcomes[number] = SearchOutcome(hits, notes, available)
        return outcomes

    def _hits(self, gallery: SideIndex, found: Hits, *, place: int, k: int) -> tuple[SearchHit, ...]:
        hits = []
        for rank in range(k):
            row = int(found.rows_QK[place, rank])
            captions = gallery.captions_of(row)
            item_id = gallery.item_id_of(row)
            hits.append(
                SearchHit(
                    id=gallery.id_of(row),
                    item_id=item_id,
                    score=float(found.scores_QK[place, rank]),
                    rank=rank + 1,
                    caption=captions[0] if captions else None,
                    labels=list(gallery.labels_of(row)),
                    thumbnail_url=self._thumbnail_url(item_id),
                )
            )
        return tuple(hits)

    def _find(self, row_id: str) -> tuple[Target, int] | None:
        for side, gallery in self._galleries.items():
            row = gallery.row_of(row_id)
            if row is not None:
                return side, row
        return None

    def _thumbnail_url(self, item_id: str) -> str | None:
        images = self._galleries.get("image")
        row = None if images is None else images.row_of(item_id)
        if images is None or row is None or not images.has_thumbnail(row):
            return None
        return f"/v1/thumbnails/{quote(item_id, safe='')}"


def too_few(available: int, k: int) -> str:
    """Why there are fewer results than asked for.

    >>> too_few(2, 5)
    '2 of 5: only 2 rows meet the filter'
    """
    return f"{available} of {k}: only {available} rows meet the filter"


def check_same_model(checkpoint_fingerprint: str, index_fingerprint: str) -> None:
    """Refuse to answer queries of one model from the vectors of another, naming both."""
    if checkpoint_fingerprint != index_fingerprint:
        raise RefusedError(
            "the index was built by another model than the checkpoint",
            got=f"index {index_fingerprint}",
            expected=f"checkpoint {checkpoint_fingerprint}",
            remedy="run `zscmr embed --overwrite` and `zscmr index --overwrite` with this checkpoint",
        )


def filter_conditions(conditions: Mapping[str, Sequence[str]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """A filter as a hashable value: equal filters compare equal, so that their requests share a search."""
    return tuple(sorted((column, tuple(sorted(set(values)))) for column, values in conditions.items()))
