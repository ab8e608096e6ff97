"""The split topology's other half: encoders and index shards in processes of their own, asked through handles.

What it is: an `Encoding` over a pool of encoders, a `Searching` over shards whose answers become the one that a whole index
would give, and what crosses the wire between them. A shard that does not answer in time is left out, and the answer says
so. What it is not: the deployments (topology.py). A request names its index and release, so that versions never mix.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zscmr_ray.config import ServeSection
from zscmr_ray.errors import ZscmrError
from zscmr_ray.serving.batcher import QueueFullError
from zscmr_ray.serving.part import share_bounds
from zscmr_ray.serving.problems import RETRY_AFTER_S, ProblemError
from zscmr_ray.serving.searcher import Searcher, SearchOutcome, SearchTask, too_few
from zscmr_ray.serving.wire import DEFAULT_K, SearchHit

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as a value: exceptions with fields do not travel between processes whole."""

    status: int
    title: str
    got: str | None = None
    expected: str | None = None
    remedy: str | None = None
    is_queue_full: bool = False

    @classmethod
    def of(cls, error: ProblemError | ZscmrError | QueueFullError) -> Refusal:
        """What an error says."""
        match error:
            case QueueFullError():
                return cls(503, "the queue is full", is_queue_full=True)
            case ProblemError():
                status, title = error.status, error.title
            case _:
                status, title = 422, error.message
        got, expected, remedy = (
            None if text is None else str(text) for text in (error.got, error.expected, error.remedy)
        )
        return cls(status, title, got, expected, remedy)

    def raised(self) -> Exception:
        """The error again."""
        if self.is_queue_full:
            return QueueFullError()
        return ProblemError(self.status, self.title, got=self.got, expected=self.expected, remedy=self.remedy)


@dataclass(frozen=True, slots=True)
class ShardHits:
    """What one shard found: hits, their scores before rounding (which order them), and how many rows meet the filter."""

    hits: tuple[SearchHit, ...]
    exact_scores: tuple[float, ...]
    available: int


class RemoteEncoding:
    """A pool of encoders, asked for one index's release."""

    def __init__(self, handle: Any, *, index: str, release_id: str) -> None:
        self._handle, self._key = handle, (index, release_id)

    async def text(self, text: str) -> FloatArray:
        """The vector of a text."""
        return await asked(self._handle.text.remote(*self._key, text))

    async def image(self, data: bytes) -> FloatArray:
        """The vector of a picture's bytes."""
        return await asked(self._handle.image.remote(*self._key, data))

    def may_take_picture(self) -> bool:
        """The pool's own queues decide."""
        return True

    def busy_s(self) -> float:
        """Nothing runs here: encoders have health checks of their own."""
        return 0.0


class RemoteSearching:
    """All shards of one index's release. `searcher` is this process's own look at the same files."""

    def __init__(
        self,
        handles: Sequence[Any],
        searcher: Searcher,
        settings: ServeSection,
        *,
        index: str,
        release_id: str,
    ) -> None:
        self._handles, self._searcher, self._key = tuple(handles), searcher, (index, release_id)
        self._timeout_s = settings.shard_timeout_ms / 1000

    async def search(self, task: SearchTask) -> SearchOutcome:
        """Ask every shard; ProblemError 503 when none answered."""
        answers = await asyncio.gather(*(self._ask(handle, task) for handle in self._handles))
        found = {number: answer for number, answer in enumerate(answers) if not isinstance(answer, str)}
        if not found:
            raise ProblemError(
                503,
                "no index shard answers",
                got="; ".join(str(answer) for answer in answers),
                remedy="ask again after Retry-After",
                retry_after_s=RETRY_AFTER_S,
            )
        k = task.k or DEFAULT_K
        available = sum(answer.available for answer in found.values())
        return SearchOutcome(
            hits=merge_hits(list(found.values()), k=k),
            notes=(too_few(available, k),) if task.conditions and available < k else (),
            available=available,
            coverage=self._coverage(task, found),
            degraded=tuple(
                f"shard {number} of {len(answers)}: {answer}"
                for number, answer in enumerate(answers)
                if isinstance(answer, str)
            ),
        )

    def busy_s(self) -> float:
        """Nothing runs here: shards have health checks of their own."""
        return 0.0

    async def _ask(self, handle: Any, task: SearchTask) -> ShardHits | str:
        try:
            async with asyncio.timeout(self._timeout_s):
                answer: ShardHits = await asked(handle.search.remote(*self._key, task))
                return answer
        except TimeoutError:
            return f"no answer in {self._timeout_s:g} s"
        except (ProblemError, QueueFullError):
            raise
        except Exception as error:
            return f"failed ({type(error).__name__})"

    def _coverage(self, task: SearchTask, answered: dict[int, ShardHits]) -> float:
        num_rows = self._searcher.gallery(task.target).num_rows
        bounds = [share_bounds(num_rows, (number, len(self._handles))) for number in answered]
        return sum(stop - start for start, stop in bounds) / num_rows if num_rows else 1.0


def merge_hits(answers: Sequence[ShardHits], *, k: int) -> tuple[SearchHit, ...]:
    """The k best of all shards' hits by exact score, ties by id, ranked anew: what the whole index would answer."""
    pairs = [pair for answer in answers for pair in zip(answer.hits, answer.exact_scores, strict=True)]
    pairs.sort(key=lambda pair: (-pair[1], pair[0].id))
    return tuple(hit.model_copy(update={"rank": rank + 1}) for rank, (hit, _) in enumerate(pairs[:k]))


def shard_hits(searcher: Searcher, task: SearchTask, outcome: SearchOutcome) -> ShardHits:
    """A shard's outcome as it travels; scores in float64, by the exact index's own sum."""
    query_D = task.query_D.astype(np.float64)
    scores = []
    for hit in outcome.hits:
        vector_D = searcher.vector_of(hit.id)
        assert vector_D is not None, "a hit is a row"
        scores.append(float((vector_D.astype(np.float64) * query_D).sum()))
    return ShardHits(outcome.hits, tuple(scores), outcome.available)


async def asked(response: Any) -> Any:
    """Await an answer; when the asker gives up, the work is cancelled where it runs."""
    try:
        answer = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    if isinstance(answer, Refusal):
        raise answer.raised()
    return answer
