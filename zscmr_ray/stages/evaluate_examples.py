"""Example queries for the report: which are shown, what they retrieve, and where the image side looks.

What it is: a choice that never looks at results: classes take turns, and inside a class the hash of the id decides.
What it is not: a source of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from zscmr_ray.retrieval.ordering import tie_ranks, top_hits
from zscmr_ray.retrieval.protocol import ClassGroups, condition_items
from zscmr_ray.retrieval.searches import DIRECTIONS, Corpus, Towers, make_search
from zscmr_ray.stages.measure.rows import EncodedRows
from zscmr_ray.stages.report.pictures import encode_picture, heat_map, shrink_picture

NUM_HITS = 6
NUM_HEAT_MAPS = 12
TITLES = {"image_to_text": "Image → text", "text_to_image": "Text → image"}

Rows = npt.NDArray[np.int64]
ReadThumbnails = Callable[[Collection[str]], Mapping[str, bytes]]


def make_examples(
    rows: EncodedRows,
    towers: Towers,
    groups: ClassGroups,
    *,
    num_queries: int,
    crop_fraction: float,
    read_thumbnails: ReadThumbnails,
) -> dict[str, Any]:
    """Return examples.json: queries with hits in both directions, and region weights over the query images."""
    queries, gallery, chosen_note = example_rows(rows.corpus, groups)
    shown = spread_over_classes(rows.corpus, queries, count=num_queries)
    found = [
        _group(rows, towers, query_items=shown, gallery_items=gallery, direction=direction)
        for direction in DIRECTIONS
        if len(shown)
    ]
    names = {name for group in found for query in group["queries"] for name in _pictured(query)}
    thumbnails = read_thumbnails(names | {rows.corpus.ids[item] for item in shown})
    small = {name: encode_picture(shrink_picture(jpeg)) for name, jpeg in thumbnails.items()}
    for group in found:
        for query in group["queries"]:
            for part in (query, *query["results"]):
                part["picture"] = small.get(part.pop("picture_of") or "")
    return {
        "chosen": chosen_note,
        "groups": found,
        "heat_maps": _heat_maps(rows, shown[:NUM_HEAT_MAPS], thumbnails, crop_fraction=crop_fraction),
    }


def example_rows(corpus: Corpus, groups: ClassGroups) -> tuple[Rows, Rows, str]:
    """Return (query items, gallery items, sentence for the page): U|U, else S|S, else the test rows by instance."""
    conditions = condition_items(corpus, groups)
    rule = "Chosen by the hash of the id, class by class, not by result."
    for name, words in (("U|U", "unseen classes"), ("S|S", "classes trained on")):
        if name in conditions:
            sentence = (
                f"Test items of {words} ask, train-partition items of {words} are searched ({name}). {rule}"
            )
            return (*conditions[name], sentence)
    test = np.flatnonzero(corpus.partition_N == "test")
    return (
        test,
        test,
        "Test items ask, test items are searched; right is the item's own partner. Chosen by the hash of the id.",
    )


def spread_over_classes(corpus: Corpus, items: Rows, *, count: int) -> Rows:
    """Return up to `count` of the items that have a caption, classes taking turns, the id's hash deciding inside one."""
    with_text = frozenset(corpus.text_item_M.tolist())
    order = [int(item) for item in items[np.argsort(tie_ranks([corpus.ids[item] for item in items]))]]
    by_class: dict[tuple[str, ...], list[int]] = {}
    for item in order:
        if item in with_text:
            by_class.setdefault(corpus.labels[item], []).append(item)
    turns = [(turn, item) for members in by_class.values() for turn, item in enumerate(members)]
    return np.array([item for _, item in sorted(turns, key=lambda pair: pair[0])[:count]], np.int64)


def _group(
    rows: EncodedRows, towers: Towers, *, query_items: Rows, gallery_items: Rows, direction: str
) -> dict[str, Any]:
    """One direction's queries with their hits; `picture_of` names the item whose thumbnail is to be shown."""
    corpus = rows.corpus
    search = make_search(
        towers, corpus, query_items=query_items, gallery_items=gallery_items, direction=direction
    )
    # A text query is the item's first caption.
    asked = [int(np.flatnonzero(search.query_items_Q == item)[0]) for item in query_items]
    hits_QK, scores_QK = top_hits(
        search.query_QD[asked], search.gallery_ND, k=NUM_HITS, gallery_ids=search.gallery_ids
    )
    by_image = direction == "image_to_text"
    caption_of = dict(zip(corpus.text_ids(), rows.captions, strict=True))
    queries = []
    for item, hits_K, scores_K in zip(query_items, hits_QK, scores_QK, strict=True):
        results = []
        for hit, score in zip(hits_K, scores_K, strict=True):
            owner = int(search.gallery_items_N[hit])
            name = search.gallery_ids[hit] if by_image else f"{corpus.ids[owner]}#0"
            results.append(
                {
                    "id": search.gallery_ids[hit],
                    "score": float(score),
                    "caption": caption_of.get(name),
                    "labels": list(corpus.labels[owner]),
                    "right": _is_right(corpus, int(item), owner),
                    "picture_of": None if by_image else corpus.ids[owner],
                }
            )
        queries.append(
            {
                "id": corpus.ids[item],
                "caption": None if by_image else caption_of[f"{corpus.ids[item]}#0"],
                "labels": list(corpus.labels[item]),
                "picture_of": corpus.ids[item] if by_image else None,
                "results": results,
            }
        )
    return {"title": TITLES[direction], "direction": direction, "queries": queries}


def _is_right(corpus: Corpus, query: int, owner: int) -> bool:
    if corpus.labels[query]:
        return not frozenset(corpus.labels[query]).isdisjoint(corpus.labels[owner])
    return query == owner


def _pictured(query: dict[str, Any]) -> set[str]:
    return {part["picture_of"] for part in (query, *query["results"]) if part["picture_of"]}


def _heat_maps(
    rows: EncodedRows, items: Rows, thumbnails: Mapping[str, bytes], *, crop_fraction: float
) -> list[dict[str, Any]]:
    """The region weights of some images; nothing for a model without them or a feature map that is no square."""
    if rows.weights_NR is None or round(rows.weights_NR.shape[1] ** 0.5) ** 2 != rows.weights_NR.shape[1]:
        return []
    first_caption = dict(zip(rows.corpus.text_item_M[::-1].tolist(), rows.captions[::-1], strict=True))
    found = []
    for item in items:
        jpeg = thumbnails.get(rows.corpus.ids[item])
        if jpeg is None:
            continue
        seen, weighted = heat_map(jpeg, rows.weights_NR[item], crop_fraction=crop_fraction)
        found.append(
            {
                "id": rows.corpus.ids[item],
                "caption": first_caption.get(int(item)),
                "labels": list(rows.corpus.labels[item]),
                "seen": encode_picture(seen),
                "weighted": encode_picture(weighted),
            }
        )
    return found
