"""The second stage as the service asks for it: who can be re-ranked, by whom, and the new order of a shortlist.

What it is: the checks of `rerank: true`, the two ways to a reranker (in this process, or the deployment of its own), and the
merging of its scores. What it is not: the attention (reranker.py), or the deployment (pools.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from zscmr_ray.config import ServeSection
from zscmr_ray.serving.batcher import Batcher, QueueFullError
from zscmr_ray.serving.logs import log_event
from zscmr_ray.serving.metrics import Metrics
from zscmr_ray.serving.problems import ProblemError
from zscmr_ray.serving.remote import asked
from zscmr_ray.serving.reranker import Reranker, Shortlist
from zscmr_ray.serving.searcher import Searcher, SearchOutcome, too_few
from zscmr_ray.serving.wire import SearchHit, SearchRequest

_LOG = logging.getLogger(__name__)
FloatArray = npt.NDArray[np.float32]
# A shortlist is some milliseconds of work: few at once, so that none waits long for the others.
_MAX_BATCH_SIZE = 4


class Reranking(Protocol):
    """The way to a reranker of one version."""

    async def rerank(self, shortlist: Shortlist) -> FloatArray:
        """The pair score of each item, [K]. Raises QueueFullError, or whatever a process elsewhere ends with."""
        ...


class LocalReranking:
    """A reranker in this process behind a batcher."""

    def __init__(self, reranker: Reranker, settings: ServeSection, metrics: Metrics) -> None:
        self._batcher: Batcher[Shortlist, FloatArray] = Batcher(
            reranker.rerank,
            name="rerank",
            max_batch_size=_MAX_BATCH_SIZE,
            max_queued=settings.max_queued_requests,
            max_queue_s=settings.max_queue_ms / 1000,
            metrics=metrics,
        )

    async def rerank(self, shortlist: Shortlist) -> FloatArray:
        """The pair score of each item."""
        return await self._batcher.submit(shortlist)

    def busy_s(self) -> float:
        """How long the batch that runs has run."""
        return self._batcher.busy_s()

    def close(self) -> None:
        """End the thread."""
        self._batcher.close()


class RemoteReranking:
    """The deployment of its own, asked for one index's release."""

    def __init__(self, handle: Any, *, index: str, release_id: str) -> None:
        self._handle, self._key = handle, (index, release_id)

    async def rerank(self, shortlist: Shortlist) -> FloatArray:
        """The pair score of each item."""
        scores_K: FloatArray = await asked(self._handle.rerank.remote(*self._key, shortlist))
        return scores_K


def keeps_regions(searcher: Searcher) -> bool:
    """Whether an index can be re-ranked: its image side holds projected regions."""
    return searcher.counts.get("image", 0) > 0 and searcher.gallery("image").regions.regions_NRD is not None


def words_to_rerank_by(
    reranking: Reranking | None, searcher: Searcher, request: SearchRequest, *, has_image: bool
) -> str:
    """The text whose attention re-ranks; ProblemError 422, with the reason, where there is none."""
    if reranking is None:
        raise ProblemError(
            422,
            "this index cannot be re-ranked",
            got="rerank=true",
            expected="an index that keeps regions of IMFA, and serve.rerank_replicas > 0",
            remedy="leave rerank out, or embed with --set embed.regions=true (a checkpoint of recipe imfa), index and serve",
        )
    query = request.query
    if request.target != "image":
        raise _unfit(
            f"target {request.target}", expected="target image: of captions an index keeps vectors only"
        )
    if query.text is not None:
        return query.text
    item = searcher.item(query.id) if query.id is not None else None
    if item is not None and item.side == "text":
        return item.captions[0]
    given = "an uploaded image" if has_image else ", ".join(f"query.{name}" for name in query.given())
    raise _unfit(given, expected="query.text, or query.id of a caption: the attention asks with words")


async def second_stage(
    reranking: Reranking | None, words: str, outcome: SearchOutcome, *, k: int, timeout_ms: int
) -> tuple[SearchOutcome, int]:
    """The outcome re-ranked, and of how many; when the second stage fails the first one's order stands, and it is said."""
    assert reranking is not None, "words_to_rerank_by has looked"
    notes = (too_few(outcome.available, k),) if outcome.notes and outcome.available < k else ()
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            shortlist = Shortlist(words, tuple(hit.id for hit in outcome.hits))
            scores_K = await reranking.rerank(shortlist)
    except TimeoutError:
        reason = f"no answer in {timeout_ms} ms"
    except QueueFullError:
        reason = "its queue is full"
    except Exception as error:
        # It is a process elsewhere: whatever ended it, the first stage's answer is there.
        reason = f"failed ({type(error).__name__})"
        log_event(_LOG, "re-ranking failed", level=logging.ERROR, reason=f"{type(error).__name__}: {error}")
    else:
        return replace(outcome, hits=reranked(outcome.hits, scores_K, k=k), notes=notes), len(scores_K)
    degraded = (*outcome.degraded, f"rerank: {reason}")
    return replace(outcome, hits=outcome.hits[:k], notes=notes, degraded=degraded), 0


def reranked(hits: Sequence[SearchHit], scores_K: FloatArray, *, k: int) -> tuple[SearchHit, ...]:
    """The k best hits by their pair scores, ties by id, ranked anew."""
    scored = sorted(zip(scores_K.tolist(), hits, strict=True), key=lambda pair: (-pair[0], pair[1].id))
    return tuple(
        hit.model_copy(update={"score": score, "rank": rank + 1})
        for rank, (score, hit) in enumerate(scored[:k])
    )


def _unfit(got: str, *, expected: str) -> ProblemError:
    return ProblemError(422, "this question cannot be re-ranked", got=got, expected=expected)
