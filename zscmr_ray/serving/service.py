"""One request from question to results: decode, encode, weigh, search, each batched with what else is there.

What it is: a plain async class, tested without Ray and without HTTP; every refusal is a ProblemError or a ZscmrError. A
request pins one version of one index at its start and uses no other. What it is not: a web framework (routes.py), a
deployment (topology.py), or the choice of the version (live.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from zscmr_ray.config import ServeSection
from zscmr_ray.config.serving import DEFAULT_INDEX
from zscmr_ray.retrieval.gallery import FILTER_COLUMNS
from zscmr_ray.retrieval.scoring import weigh_query
from zscmr_ray.serving.batcher import QueueFullError
from zscmr_ray.serving.embeddings import embed
from zscmr_ray.serving.live import Indexes
from zscmr_ray.serving.metrics import Metrics
from zscmr_ray.serving.problems import RETRY_AFTER_S, ProblemError
from zscmr_ray.serving.questions import check_question, checked_vector, picture_of
from zscmr_ray.serving.reranking import second_stage, words_to_rerank_by
from zscmr_ray.serving.searcher import Searcher, SearchTask, filter_conditions
from zscmr_ray.serving.version import IndexVersion
from zscmr_ray.serving.wire import (
    DEFAULT_K,
    Block,
    EmbeddingsRequest,
    EmbeddingsResponse,
    IndexInfo,
    Item,
    Query,
    SearchHit,
    SearchRequest,
    SearchResponse,
    Target,
)

FloatArray = npt.NDArray[np.float32]
_DRAIN_LOOK_S = 0.05


class SearchService:
    """Answers requests of the indexes it is given."""

    def __init__(self, indexes: Indexes, settings: ServeSection, metrics: Metrics | None = None) -> None:
        self.indexes_served, self.metrics = indexes, metrics or Metrics()
        self._settings = settings
        self._in_flight = 0
        self._is_draining = False

    def close(self) -> None:
        """End the threads and delete local copies."""
        self.indexes_served.close()

    def admit(self, *, may_hold_picture: bool) -> None:
        """Refuse what could not be answered in time before its body is read; ProblemError 503."""
        if self._is_draining:
            self.metrics.refused("draining")
            raise _busy("the service is stopping", "a service that stays")
        if self._in_flight >= self._settings.max_queued_requests:
            self.metrics.refused("busy")
            bound = self._settings.max_queued_requests
            raise _busy(f"{bound} requests in progress", f"fewer than serve.max_queued_requests = {bound}")
        # By the default index's model: which index is asked stands in the body.
        with self.indexes_served.pinned(DEFAULT_INDEX) as version:
            if may_hold_picture and not version.encoding.may_take_picture():
                raise self._queue_full()

    async def search(self, request: SearchRequest, *, image: bytes | None = None) -> SearchResponse:
        """Answer one search within its deadline; `image` is an uploaded picture.

        Raises ProblemError 503 (queue full), 504 (deadline), 404 (unknown id) or 422, and DataError or ConfigError for
        what else is wrong with the question.
        """
        async with self.in_time(request.deadline_ms):
            with self.indexes_served.pinned(request.index) as version:
                return await self._answer(version, request, image)

    async def embed(self, request: EmbeddingsRequest) -> EmbeddingsResponse:
        """Encode texts and pictures (embeddings.py) within a deadline. Raises as `search`."""
        async with self.in_time(request.deadline_ms):
            return await embed(self.indexes_served, request, self._settings)

    @contextlib.asynccontextmanager
    async def in_time(self, deadline_ms: int | None = None) -> AsyncIterator[None]:
        """Count a request in, and end it at its deadline (default: serve.default_deadline_ms), queued work included.

        Raises ProblemError 503 (queue full) or 504 (deadline).
        """
        self.admit(may_hold_picture=False)
        deadline_ms = deadline_ms or self._settings.default_deadline_ms
        self._in_flight += 1
        self.metrics.in_flight(1)
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                yield
        except TimeoutError as error:
            self.metrics.refused("deadline")
            raise ProblemError(
                504,
                "the deadline passed",
                got=f"no answer in {deadline_ms} ms",
                remedy="allow more time with deadline_ms, or ask again later",
            ) from error
        except QueueFullError as error:
            raise self._queue_full() from error
        finally:
            self._in_flight -= 1
            self.metrics.in_flight(-1)

    async def drain(self, timeout_s: float) -> int:
        """Refuse what comes from now on, wait for what is in progress, and return how many are left."""
        self._is_draining = True
        end_s = time.monotonic() + timeout_s
        while self._in_flight and time.monotonic() < end_s:
            await asyncio.sleep(_DRAIN_LOOK_S)
        return self._in_flight

    def busy_s(self) -> float:
        """How long the longest running batch of any live version has run: what a health check looks at."""
        longest = 0.0
        for name in self.indexes_served.names():
            with self.indexes_served.pinned(name) as version:
                longest = max(longest, version.encoding.busy_s(), version.searching.busy_s())
        return longest

    def item(self, row_id: str, *, index: str = DEFAULT_INDEX) -> Item:
        """What is known of an item or caption; ProblemError 404."""
        with self.indexes_served.pinned(index) as version:
            found = version.searcher.item(row_id)
        if found is None:
            raise _unknown_id(row_id)
        return found.model_copy(update={"thumbnail_url": _url_of(found.thumbnail_url, index)})

    def thumbnail(self, row_id: str, *, index: str = DEFAULT_INDEX) -> bytes:
        """The JPEG thumbnail of an item or of a caption's item; ProblemError 404."""
        with self.indexes_served.pinned(index) as version:
            found = version.searcher.thumbnail(row_id)
        if found is None:
            raise ProblemError(
                404, "no thumbnail of this id", got=row_id, expected="an item with a thumbnail"
            )
        return found

    def indexes(self) -> list[IndexInfo]:
        """What can be searched."""
        infos = []
        for name in self.indexes_served.names():
            with self.indexes_served.pinned(name) as version:
                infos.append(self._info(name, version))
        return infos

    def _info(self, name: str, version: IndexVersion) -> IndexInfo:
        searcher = version.searcher
        return IndexInfo(
            name=name,
            index_version=searcher.version,
            model_fingerprint=searcher.fingerprint,
            kind=str(searcher.info["kind"]),
            dimension=searcher.dimension,
            blocks=[Block(name=b.name, start=b.start, stop=b.stop) for b in searcher.blocks],
            counts=searcher.counts,
            recall_at_10=dict(searcher.info["recall_at_10"]),
            label_weight=version.label_weight,
            filter_columns=list(FILTER_COLUMNS),
            max_k=self._settings.max_k,
            rerank=version.reranking is not None,
            problem=self.indexes_served.problem(name),
        )

    async def _answer(
        self, version: IndexVersion, request: SearchRequest, image: bytes | None
    ) -> SearchResponse:
        started_s = time.perf_counter()
        searcher = version.searcher
        check_question(searcher, request, image, max_k=self._settings.max_k)
        words, k = None, request.k or DEFAULT_K
        if request.rerank:
            words = words_to_rerank_by(version.reranking, searcher, request, has_image=image is not None)
        vector_D = await self._vector(version, request, image)
        encoded_s = time.perf_counter()
        label_weight = version.label_weight if request.label_weight is None else request.label_weight
        query_QD = weigh_query(vector_D[None], searcher.blocks, label_weight=label_weight)
        task = SearchTask(
            query_D=query_QD[0],
            target=request.target,
            k=request.k if words is None else max(k, self._settings.rerank_top_n),
            conditions=filter_conditions(request.filter),
            asked=_asked_side(searcher, request.query),
        )
        outcome = await version.searching.search(task)
        searched_s = time.perf_counter()
        num_reranked = 0
        if words is not None:
            outcome, num_reranked = await second_stage(
                version.reranking, words, outcome, k=k, timeout_ms=self._settings.rerank_timeout_ms
            )
        ended_s = time.perf_counter()
        for reason in outcome.degraded:
            self.metrics.degraded(reason.partition(":")[0])
        return SearchResponse(
            results=_hits(outcome.hits, version.index),
            index_version=searcher.version,
            model_fingerprint=searcher.fingerprint,
            label_weight=label_weight,
            coverage=outcome.coverage,
            degraded=list(outcome.degraded),
            reranked=num_reranked,
            notes=list(outcome.notes),
            timings_ms={
                "encode": _ms(encoded_s - started_s),
                "search": _ms(searched_s - encoded_s),
                **({} if words is None else {"rerank": _ms(ended_s - searched_s)}),
                "total": _ms(ended_s - started_s),
            },
        )

    async def _vector(self, version: IndexVersion, request: SearchRequest, image: bytes | None) -> FloatArray:
        query = request.query
        if query.text is not None:
            return await version.encoding.text(query.text)
        if query.id is not None:
            stored = version.searcher.vector_of(query.id)
            if stored is None:
                raise _unknown_id(query.id)
            return stored
        if query.vector is not None:
            return checked_vector(version.searcher, query.vector)
        return await version.encoding.image(image if image is not None else picture_of(query.image_b64 or ""))

    def _queue_full(self) -> ProblemError:
        self.metrics.refused("queue")
        settings = self._settings
        return _busy(
            "the queue is full",
            f"a wait of at most serve.max_queue_ms = {settings.max_queue_ms}, for a picture "
            f"serve.max_picture_queue_ms = {settings.max_picture_queue_ms}",
        )


def _asked_side(searcher: Searcher, query: Query) -> Target | None:
    """The side a question is of; None for a vector, which does not say."""
    if query.id is not None:
        return searcher.side_of(query.id)
    if query.vector is not None:
        return None
    return "text" if query.text is not None else "image"


def _hits(hits: Sequence[SearchHit], index: str) -> list[SearchHit]:
    if index == DEFAULT_INDEX:
        return list(hits)
    return [hit.model_copy(update={"thumbnail_url": _url_of(hit.thumbnail_url, index)}) for hit in hits]


def _url_of(thumbnail_url: str | None, index: str) -> str | None:
    if thumbnail_url is None or index == DEFAULT_INDEX:
        return thumbnail_url
    return f"{thumbnail_url}?index={quote(index, safe='')}"


def _unknown_id(row_id: str) -> ProblemError:
    return ProblemError(404, "no such id in the index", got=row_id, expected="the id of an item or caption")


def _busy(got: str, expected: str) -> ProblemError:
    return ProblemError(
        503,
        "the service is busy",
        got=got,
        expected=expected,
        remedy="ask again after Retry-After",
        retry_after_s=RETRY_AFTER_S,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
