"""One version of one index, whole: what a request is pinned to from its first step to its last.

What it is: the searcher of a release, the way to encode queries for it and the way to search it, and how the fused
topology builds one. What it is not: the choice of the version (live.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from zscmr_ray.config import ServeSection
from zscmr_ray.engine.checkpoint import FILES as CHECKPOINT_FILES
from zscmr_ray.engine.checkpoint import read_meta
from zscmr_ray.manifest import require_manifest
from zscmr_ray.serving.batcher import Batcher
from zscmr_ray.serving.encoder import Encoder, ModelEncoder
from zscmr_ray.serving.encoding import EncoderPool, Encoding, RememberedTexts
from zscmr_ray.serving.metrics import Metrics
from zscmr_ray.serving.releases import Release, Releases
from zscmr_ray.serving.reranker import Reranker
from zscmr_ray.serving.reranking import LocalReranking, Reranking, keeps_regions
from zscmr_ray.serving.searcher import Searcher, SearchOutcome, SearchTask, check_same_model
from zscmr_ray.serving.vectors_only import VectorsOnly

# A model in memory beside its file's bytes: the frozen backbones are not in the checkpoint.
_BACKBONE_BYTES = 200 << 20


class Searching(Protocol):
    """The way to search one version."""

    async def search(self, task: SearchTask) -> SearchOutcome:
        """Answer one task. Raises QueueFullError or DataError."""
        ...

    def busy_s(self) -> float:
        """How long the batch that runs has run."""
        ...


@dataclass(frozen=True)
class IndexVersion:
    """What answers a request. `label_weight` is the model's choice of lambda; `on_close` gives everything back."""

    index: str
    searcher: Searcher
    label_weight: float
    encoding: Encoding
    searching: Searching
    on_close: Callable[[], None]
    reranking: Reranking | None = None

    def close(self) -> None:
        """Give back what it holds."""
        self.on_close()


class LocalSearching:
    """A searcher in this process behind a batcher."""

    def __init__(self, searcher: Searcher, settings: ServeSection, metrics: Metrics) -> None:
        self._batcher: Batcher[SearchTask, SearchOutcome] = Batcher(
            searcher.search,
            name="search",
            max_batch_size=settings.max_batch_size,
            max_queued=settings.max_queued_requests,
            metrics=metrics,
        )

    async def search(self, task: SearchTask) -> SearchOutcome:
        """Answer one task with what else is there."""
        return await self._batcher.submit(task)

    def busy_s(self) -> float:
        """How long the batch that runs has run."""
        return self._batcher.busy_s()

    def close(self) -> None:
        """End the thread."""
        self._batcher.close()


def local_version(
    index: str, encoder: Encoder, searcher: Searcher, settings: ServeSection, metrics: Metrics
) -> IndexVersion:
    """A version of an encoder and a searcher that are here; RefusedError, naming both, when they do not fit."""
    pool = EncoderPool(settings, metrics)
    return _version(index, searcher, pool, lambda: encoder, settings, metrics)


def load_version(
    index: str,
    releases: Releases,
    release: Release,
    pool: EncoderPool,
    settings: ServeSection,
    metrics: Metrics,
) -> IndexVersion:
    """Load a release into this process. Raises DataError (damaged) or RefusedError (index and model differ)."""
    searcher = Searcher(releases.index_store(release))
    return _version(
        index, searcher, pool, lambda: load_encoder(releases, release, searcher, settings), settings, metrics
    )


def load_reranking(
    releases: Releases, release: Release, searcher: Searcher, settings: ServeSection, metrics: Metrics
) -> LocalReranking | None:
    """Load what re-ranks a release into this process; None where its index keeps no regions."""
    place = releases.model_place(release)
    if place is None or not keeps_regions(searcher):
        return None
    reranker = Reranker(place, searcher.gallery("image"), fingerprint=release.model_fingerprint)
    return LocalReranking(reranker, settings, metrics)


def load_encoder(releases: Releases, release: Release, searcher: Searcher, settings: ServeSection) -> Encoder:
    """Load a release's model."""
    place = releases.model_place(release)
    if place is None:
        return VectorsOnly(searcher)
    return ModelEncoder(place, max_pixels=settings.max_pixels)


def need_bytes(
    releases: Releases, release: Release, pool: EncoderPool | None, *, with_index: bool = True
) -> int:
    """Memory a release will want: its index in the page cache, and its model unless that is here (or no pool) already."""
    index = require_manifest(releases.index_store(release), "index")
    needed = sum(part.size_bytes for part in index.parts) if with_index else 0
    place = releases.model_place(release)
    if place is None or pool is None or pool.holds(release.model_fingerprint):
        return needed
    if place.checkpoint is not None:
        needed += sum(place.checkpoint.info(name).size_bytes for name in CHECKPOINT_FILES)
    return needed + _BACKBONE_BYTES


def label_weight_of(releases: Releases, release: Release) -> float:
    """The lambda that a release's model selected, without loading it."""
    place = releases.model_place(release)
    return 0.0 if place is None or place.checkpoint is None else read_meta(place.checkpoint).label_weight


def _version(
    index: str,
    searcher: Searcher,
    pool: EncoderPool,
    load: Callable[[], Encoder],
    settings: ServeSection,
    metrics: Metrics,
) -> IndexVersion:
    encoder, encoding = pool.acquire(searcher.fingerprint, load)
    try:
        check_same_model(encoder.fingerprint, searcher.fingerprint)
    except BaseException:
        pool.give_back(searcher.fingerprint)
        raise
    searching = LocalSearching(searcher, settings, metrics)

    def close() -> None:
        searching.close()
        pool.give_back(searcher.fingerprint)
        searcher.close()

    return IndexVersion(
        index=index,
        searcher=searcher,
        label_weight=encoder.label_weight,
        encoding=RememberedTexts(encoding, size=settings.text_cache_size, metrics=metrics),
        searching=searching,
        on_close=close,
    )
