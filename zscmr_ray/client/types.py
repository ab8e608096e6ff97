"""What a service answers, as frozen dataclasses: their own, so that a client needs neither pydantic nor the server's half."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Hit:
    """One result; `score` is the weighted inner product, `thumbnail_url` a path on the service or None."""

    id: str
    item_id: str
    score: float
    rank: int
    caption: str | None
    labels: tuple[str, ...]
    thumbnail_url: str | None


@dataclass(frozen=True, slots=True)
class SearchResponse:
    """Results, best first, and what answered: index and model, label weight, coverage, and any shortfall's reason."""

    results: tuple[Hit, ...]
    index_version: str
    model_fingerprint: str
    label_weight: float
    coverage: float
    degraded: tuple[str, ...]
    notes: tuple[str, ...]
    timings_ms: dict[str, float]
    reranked: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """One indexed row: an image item (`side` image) or a caption (`side` text)."""

    id: str
    item_id: str
    side: str
    labels: tuple[str, ...]
    captions: tuple[str, ...]
    thumbnail_url: str | None


def search_response(found: Mapping[str, Any]) -> SearchResponse:
    """The typed answer of `POST /v1/search`; fields this version does not know are left out."""
    hits = tuple(
        Hit(
            id=hit["id"],
            item_id=hit["item_id"],
            score=hit["score"],
            rank=hit["rank"],
            caption=hit["caption"],
            labels=tuple(hit["labels"]),
            thumbnail_url=hit["thumbnail_url"],
        )
        for hit in found["results"]
    )
    return SearchResponse(
        results=hits,
        index_version=found["index_version"],
        model_fingerprint=found["model_fingerprint"],
        label_weight=found["label_weight"],
        coverage=found["coverage"],
        degraded=tuple(found["degraded"]),
        notes=tuple(found["notes"]),
        timings_ms=dict(found["timings_ms"]),
        reranked=found.get("reranked", 0),
    )


def item_of(found: Mapping[str, Any]) -> Item:
    """The typed answer of `GET /v1/items/{id}`."""
    return Item(
        id=found["id"],
        item_id=found["item_id"],
        side=found["side"],
        labels=tuple(found["labels"]),
        captions=tuple(found["captions"]),
        thumbnail_url=found["thumbnail_url"],
    )
