"""`POST /v1/embeddings`: texts and pictures to vectors, in the shape of OpenAI's endpoint, so that its clients work.

A vector is what `zscmr embed` stores for the same input: unweighted unit blocks in half precision (here widened), the same
numbers up to the last bit, which may depend on what was encoded together. What it is not: a search; weights belong to the
query of one (`lambda`). A picture comes as a data URI; an address is refused, for nothing is ever fetched.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import numpy.typing as npt

from zscmr_ray.config import ServeSection
from zscmr_ray.config.serving import DEFAULT_INDEX
from zscmr_ray.errors import ZscmrError
from zscmr_ray.serving.encoding import Encoding
from zscmr_ray.serving.live import Indexes
from zscmr_ray.serving.problems import ProblemError
from zscmr_ray.serving.questions import picture_of
from zscmr_ray.serving.wire import (
    MAX_TEXT_CHARS,
    Embedding,
    EmbeddingsRequest,
    EmbeddingsResponse,
    EmbeddingsUsage,
)

FloatArray = npt.NDArray[np.float32]
SHOWN_FINGERPRINT = 12
# Pictures on their way at once: enough for a batch to form, not enough to fill the queue for others.
_PICTURES_AT_ONCE = 4
_URL = re.compile(r"\s*(https?|file|ftp|s3|gs)://\S*\s*", re.IGNORECASE)
_DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<rest>[;,])", re.IGNORECASE)
_PICTURE_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


async def embed(indexes: Indexes, request: EmbeddingsRequest, settings: ServeSection) -> EmbeddingsResponse:
    """Encode every input by the model of the index that is asked. Raises ProblemError 404 or 422, or QueueFullError."""
    inputs = [request.input] if isinstance(request.input, str) else request.input
    _check(inputs, settings)
    with indexes.pinned(find_index(indexes, request.model)) as version:
        dimension = version.searcher.dimension
        if request.dimensions is not None and request.dimensions != dimension:
            raise ProblemError(
                422,
                "vectors are not cut",
                got=f"dimensions={request.dimensions}",
                expected=f"{dimension}, or none",
            )
        vectors = await _encode(version.encoding, inputs, settings)
        return EmbeddingsResponse(
            data=[
                Embedding(index=number, embedding=_as_sent(vector_D, request.encoding_format))
                for number, vector_D in enumerate(vectors)
            ],
            model=version.searcher.fingerprint,
            usage=_usage(inputs),
        )


def find_index(indexes: Indexes, model: str | None) -> str:
    """The index whose model is meant: by its name, or by the model's fingerprint (whole, or its first 12 characters)."""
    known: dict[str, str] = {}
    for name in indexes.names():
        with indexes.pinned(name) as version:
            fingerprint = version.searcher.fingerprint
        known |= {fingerprint: name, fingerprint[:SHOWN_FINGERPRINT]: name}
    known |= {name: name for name in indexes.names()}
    found = known.get(DEFAULT_INDEX if model is None else model)
    if found is None:
        raise ProblemError(
            404,
            "no such model",
            got=model,
            expected=f"an index of /v1/indexes ({', '.join(indexes.names())}) or its model_fingerprint",
        )
    return found


def _check(inputs: Sequence[str], settings: ServeSection) -> None:
    if len(inputs) > settings.max_embedding_inputs:
        raise ProblemError(
            422,
            "too many inputs",
            got=len(inputs),
            expected=f"at most serve.max_embedding_inputs = {settings.max_embedding_inputs}",
        )
    for number, given in enumerate(inputs):
        if _URL.fullmatch(given):
            raise ProblemError(
                422,
                f"input {number} is an address, and nothing is fetched",
                got=given,
                expected="a text, or a picture as data:image/<type>;base64,<bytes>",
            )
        if _DATA_URI.match(given) and not _is_picture(given):
            raise ProblemError(
                422,
                f"input {number} is another data URI",
                got=given[:40],
                expected="data:image/<type>;base64,<bytes>",
            )
        if not _is_picture(given) and len(given) > MAX_TEXT_CHARS:
            raise ProblemError(
                422,
                f"input {number} is too long",
                got=f"{len(given)} characters",
                expected=f"<= {MAX_TEXT_CHARS}",
            )


async def _encode(encoding: Encoding, inputs: Sequence[str], settings: ServeSection) -> list[FloatArray]:
    """Texts a batch at a time and pictures a few, beside each other: the queues stay open for others."""
    limits = {
        False: asyncio.Semaphore(min(settings.max_batch_size, settings.max_queued_requests)),
        True: asyncio.Semaphore(_PICTURES_AT_ONCE),
    }

    async def one(number: int, given: str) -> FloatArray:
        async with limits[_is_picture(given)]:
            if _is_picture(given):
                return await _named(number, lambda: encoding.image(picture_of(given.partition(",")[2])))
            return await _named(number, lambda: encoding.text(given))

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number, given)) for number, given in enumerate(inputs)]
    except ExceptionGroup as failed:
        # The first refusal speaks for all; the group has cancelled what still queued.
        raise failed.exceptions[0] from failed
    return [task.result() for task in tasks]


async def _named(number: int, work: Callable[[], Awaitable[FloatArray]]) -> FloatArray:
    """Do it, and say of a refusal which input it is about."""
    try:
        return await work()
    except ZscmrError as error:
        raise ProblemError(
            422,
            f"input {number}: {error.message}",
            got=error.got,
            expected=error.expected,
            remedy=error.remedy,
        ) from error


def _is_picture(given: str) -> bool:
    return _PICTURE_URI.match(given) is not None


def _as_sent(vector_D: FloatArray, encoding_format: str) -> list[float] | str:
    stored_D = vector_D.astype(np.float16).astype("<f4")
    if encoding_format == "base64":
        return base64.b64encode(stored_D.tobytes()).decode()
    return [float(value) for value in stored_D]


def _usage(inputs: Sequence[str]) -> EmbeddingsUsage:
    words = sum(len(given.split()) for given in inputs if not _is_picture(given))
    return EmbeddingsUsage(prompt_tokens=words, total_tokens=words)
