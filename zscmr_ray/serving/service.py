"""One request from question to results: decode, encode, weigh, search, each batched with what else is there.

What it is: a plain async class, tested without Ray and without HTTP; every refusal is a ProblemError or a ZscmrError.
What it is not: a web framework (routes.py) or a deployment (app.py). Text, pictures and searches have a batcher each,
so that a slow picture does not hold up text queries.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from zscmr_ray.config import ServeSection
from zscmr_ray.retrieval.gallery import FILTER_COLUMNS
from zscmr_ray.retrieval.scoring import weigh_query
from zscmr_ray.serving.batcher import Batcher, QueueFullError
from zscmr_ray.serving.encoder import Encoder, Pixels
from zscmr_ray.serving.problems import RETRY_AFTER_S, ProblemError
from zscmr_ray.serving.searcher import (
    Searcher,
    SearchOutcome,
    SearchTask,
    check_same_model,
    filter_conditions,
)
from zscmr_ray.serving.wire import Block, IndexInfo, Item, SearchRequest, SearchResponse

FloatArray = npt.NDArray[np.float32]
INDEX_NAME = "default"
# How far a block of a `vector` query may be from unit length: f16 rounding is 1e-3.
_UNIT_TOLERANCE = 1e-2
_DECODE_THREADS = 2


class SearchService:
    """An encoder and the index of its model. Raises RefusedError, naming both, when they are of different models."""

    def __init__(self, encoder: Encoder, searcher: Searcher, settings: ServeSection) -> None:
        check_same_model(encoder.fingerprint, searcher.fingerprint)
        self._encoder, self._searcher, self._settings = encoder, searcher, settings
        self._decoding = ThreadPoolExecutor(_DECODE_THREADS, thread_name_prefix="zscmr-decode")
        self._in_flight = 0
        size, queued = settings.max_batch_size, settings.max_queued_requests
        self._texts: Batcher[str, FloatArray] = Batcher(
            lambda texts: list(encoder.encode_texts(texts)),
            name="text",
            max_batch_size=size,
            max_queued=queued,
        )
        self._images: Batcher[Pixels, FloatArray] = Batcher(
            lambda pixels: list(encoder.encode_images(pixels)),
            name="image",
            max_batch_size=size,
            max_queued=queued,
        )
        self._searches: Batcher[SearchTask, SearchOutcome] = Batcher(
            searcher.search, name="search", max_batch_size=size, max_queued=queued
        )

    def close(self) -> None:
        """End the threads and delete local copies."""
        for batcher in (self._texts, self._images, self._searches):
            batcher.close()
        self._decoding.shutdown(wait=False, cancel_futures=True)
        self._searcher.close()

    async def search(self, request: SearchRequest, *, image: bytes | None = None) -> SearchResponse:
        """Answer one search within its deadline; `image` is an uploaded picture.

        Raises ProblemError 503 (queue full), 504 (deadline), 404 (unknown id) or 422, and DataError or ConfigError for
        what else is wrong with the question.
        """
        if self._in_flight >= self._settings.max_queued_requests:
            raise _busy(self._settings.max_queued_requests)
        deadline_ms = request.deadline_ms or self._settings.default_deadline_ms
        self._in_flight += 1
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                return await self._answer(request, image)
        except TimeoutError as error:
            raise ProblemError(
                504,
                "the deadline passed",
                got=f"no answer in {deadline_ms} ms",
                remedy="allow more time with deadline_ms, or ask again later",
            ) from error
        except QueueFullError as error:
            raise _busy(self._settings.max_queued_requests) from error
        finally:
            self._in_flight -= 1

    def item(self, row_id: str) -> Item:
        """What is known of an item or caption; ProblemError 404."""
        found = self._searcher.item(row_id)
        if found is None:
            raise _unknown_id(row_id)
        return found

    def thumbnail(self, row_id: str) -> bytes:
        """The JPEG thumbnail of an item or of a caption's item; ProblemError 404."""
        found = self._searcher.thumbnail(row_id)
        if found is None:
            raise ProblemError(
                404, "no thumbnail of this id", got=row_id, expected="an item with a thumbnail"
            )
        return found

    def indexes(self) -> list[IndexInfo]:
        """What can be searched."""
        searcher = self._searcher
        return [
            IndexInfo(
                name=INDEX_NAME,
                index_version=searcher.version,
                model_fingerprint=searcher.fingerprint,
                kind=str(searcher.info["kind"]),
                dimension=searcher.dimension,
                blocks=[Block(name=b.name, start=b.start, stop=b.stop) for b in searcher.blocks],
                counts=searcher.counts,
                recall_at_10=dict(searcher.info["recall_at_10"]),
                label_weight=self._encoder.label_weight,
                filter_columns=list(FILTER_COLUMNS),
                max_k=self._settings.max_k,
            )
        ]

    async def _answer(self, request: SearchRequest, image: bytes | None) -> SearchResponse:
        started_s = time.perf_counter()
        self._check(request, image)
        vector_D = await self._vector(request, image)
        encoded_s = time.perf_counter()
        label_weight = self._encoder.label_weight if request.label_weight is None else request.label_weight
        query_QD = weigh_query(vector_D[None], self._searcher.blocks, label_weight=label_weight)
        task = SearchTask(
            query_D=query_QD[0],
            target=request.target,
            k=request.k,
            conditions=filter_conditions(request.filter),
        )
        outcome = await self._searches.submit(task)
        ended_s = time.perf_counter()
        return SearchResponse(
            results=list(outcome.hits),
            index_version=self._searcher.version,
            model_fingerprint=self._encoder.fingerprint,
            label_weight=label_weight,
            coverage=1.0,
            degraded=[],
            notes=list(outcome.notes),
            timings_ms={
                "encode": _ms(encoded_s - started_s),
                "search": _ms(ended_s - encoded_s),
                "total": _ms(ended_s - started_s),
            },
        )

    def _check(self, request: SearchRequest, image: bytes | None) -> None:
        given = request.query.given() + (["image (upload)"] if image is not None else [])
        if len(given) != 1:
            raise ProblemError(
                422,
                "one question at a time",
                got=" and ".join(given) or "no question",
                expected="exactly one of query.text, query.image_b64, query.vector, query.id or an uploaded image",
            )
        if request.k is not None and request.k > self._settings.max_k:
            raise ProblemError(
                422,
                "k is larger than this service allows",
                got=f"k={request.k}",
                expected=f"<= {self._settings.max_k}",
            )
        unknown = sorted(set(request.filter) - set(FILTER_COLUMNS))
        if unknown:
            raise ProblemError(
                422, "no such filter column", got=", ".join(unknown), expected=", ".join(FILTER_COLUMNS)
            )
        self._searcher.check_k(request.target, request.k)

    async def _vector(self, request: SearchRequest, image: bytes | None) -> FloatArray:
        query = request.query
        if query.text is not None:
            return await self._texts.submit(self._encoder.clean(query.text))
        if query.id is not None:
            stored = self._searcher.vector_of(query.id)
            if stored is None:
                raise _unknown_id(query.id)
            return stored
        if query.vector is not None:
            return self._checked_vector(query.vector)
        data = image if image is not None else _from_base64(query.image_b64 or "")
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._decoding, self._encoder.decode, data)
        return await self._images.submit(pixels)

    def _checked_vector(self, values: Sequence[float]) -> FloatArray:
        dimension = self._searcher.dimension
        if len(values) != dimension:
            raise ProblemError(
                422, "the vector has another length than the index", got=len(values), expected=dimension
            )
        vector_D = np.asarray(values, np.float32)
        for block in self._searcher.blocks:
            # In float64: a float32 square of a wild number would overflow into a warning.
            norm = float(np.linalg.norm(np.asarray(values[block.start : block.stop], np.float64)))
            if not abs(norm - 1.0) <= _UNIT_TOLERANCE:
                raise ProblemError(
                    422,
                    f"block {block.name} of the vector is not of unit length",
                    got=f"norm {norm:.4g} of columns {block.start} to {block.stop}",
                    expected="1: unweighted unit blocks, as stored in the embeddings; weights are `lambda`",
                )
        return vector_D


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProblemError(
            422,
            "query.image_b64 is not base64",
            got=str(error),
            expected="standard base64 of the picture's bytes, without a data: prefix (URLs are never fetched)",
        ) from error


def _unknown_id(row_id: str) -> ProblemError:
    return ProblemError(404, "no such id in the index", got=row_id, expected="the id of an item or caption")


def _busy(bound: int) -> ProblemError:
    return ProblemError(
        503,
        "the service is busy",
        got=f"{bound} requests in progress",
        expected=f"fewer than serve.max_queued_requests = {bound}",
        remedy="ask again after Retry-After",
        retry_after_s=RETRY_AFTER_S,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
