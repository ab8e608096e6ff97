"""Both topologies give the same answers; a shard that is gone makes an answer smaller and says so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.embeddings_run import unit_vectors
from tests.serving.conftest import FakeEncoder, fixed_service
from zscmr_ray.config import Config, ServeSection
from zscmr_ray.config.serving import DEFAULT_INDEX
from zscmr_ray.errors import DataError
from zscmr_ray.serving.batcher import QueueFullError
from zscmr_ray.serving.encoding import LocalEncoding
from zscmr_ray.serving.live import FixedIndex
from zscmr_ray.serving.metrics import Metrics
from zscmr_ray.serving.part import share_bounds
from zscmr_ray.serving.problems import ProblemError
from zscmr_ray.serving.remote import Refusal, RemoteEncoding, RemoteSearching, shard_hits
from zscmr_ray.serving.searcher import Searcher, SearchTask
from zscmr_ray.serving.service import SearchService
from zscmr_ray.serving.version import IndexVersion, LocalSearching
from zscmr_ray.serving.wire import Query, SearchRequest
from zscmr_ray.stages import stage_store

NUM_SHARDS = 3


class Shard:
    """A shard's work behind what a handle looks like: `search.remote(...)` gives something to await and to cancel."""

    def __init__(self, searcher: Searcher, *, fault: str | None = None) -> None:
        self._searcher, self._fault = searcher, fault
        self._searching = LocalSearching(searcher, ServeSection(), Metrics())
        self.search = self
        self.cancelled = 0

    def remote(self, index: str, release_id: str, task: SearchTask) -> Any:
        return Response(self._answer(task), self)

    async def _answer(self, task: SearchTask) -> Any:
        if self._fault == "dead":
            raise RuntimeError("the actor died")
        if self._fault == "wedged":
            await asyncio.sleep(60)
        if self._fault == "full":
            return Refusal.of(QueueFullError())
        return shard_hits(self._searcher, task, await self._searching.search(task))


class Response:
    def __init__(self, answer: Any, shard: Shard) -> None:
        self._answer, self._shard = answer, shard

    def __await__(self) -> Any:
        return self._answer.__await__()

    def cancel(self) -> None:
        self._shard.cancelled += 1


def split_service(
    config: Config, faults: Sequence[str | None] = (None,) * NUM_SHARDS, *, shard_timeout_ms: int = 60_000
) -> SearchService:
    settings, metrics = ServeSection(shard_timeout_ms=shard_timeout_ms), Metrics()
    whole = Searcher(stage_store(config, "index"))
    shards = [
        Shard(Searcher(stage_store(config, "index"), share=(n, NUM_SHARDS)), fault=fault)
        for n, fault in enumerate(faults)
    ]
    version = IndexVersion(
        index=DEFAULT_INDEX,
        searcher=whole,
        label_weight=FakeEncoder.label_weight,
        encoding=LocalEncoding(FakeEncoder(), settings, metrics),
        searching=RemoteSearching(shards, whole, settings, index=DEFAULT_INDEX, release_id="r"),
        on_close=whole.close,
    )
    service = SearchService(FixedIndex(version), settings, metrics)
    service.shards = shards  # type: ignore[attr-defined]
    return service


def answer(service: SearchService, **more: Any) -> dict[str, Any]:
    found = asyncio.run(service.search(SearchRequest(deadline_ms=60_000, **more))).model_dump(mode="json")
    del found["timings_ms"]
    return found


QUESTIONS = [
    {"query": Query(text="caption 1 of item 4"), "target": "text", "k": 20},
    {"query": Query(text="caption 0 of item 7"), "target": "image", "k": 12},
    {"query": Query(text="caption 0 of item 7"), "target": "image", "k": None, "label_weight": 1.0},
    {"query": Query(text="caption 0 of item 2"), "target": "text", "filter": {"labels": ["any"]}, "k": 15},
    {"query": Query(text="caption 0 of item 2"), "target": "text", "filter": {"labels": ["none"]}},
    {
        "query": Query(vector=[float(x) for x in unit_vectors(1, seed=3)[0]]),
        "target": "image",
        "k": 5,
        "filter": {"labels": ["red"]},
    },
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_both_topologies_give_the_same_json(indexed_run: Config, question: dict[str, Any]) -> None:
    fused = answer(fixed_service(FakeEncoder(), indexed_run, ServeSection()), **question)
    assert answer(split_service(indexed_run), **question) == fused
    assert fused["coverage"] == 1.0 and fused["degraded"] == []


@pytest.mark.parametrize("fault", ["dead", "wedged"])
def test_a_shard_that_is_gone_is_said_and_the_rest_is_right(indexed_run: Config, fault: str) -> None:
    question = {"query": Query(text="caption 1 of item 4"), "target": "text", "k": 20}
    service = split_service(indexed_run, (None, fault, None), shard_timeout_ms=3_000)
    found = answer(service, **question)
    start, stop = share_bounds(24, (1, NUM_SHARDS))
    assert found["coverage"] == pytest.approx(1 - (stop - start) / 24)
    assert len(found["degraded"]) == 1 and found["degraded"][0].startswith("shard 1 of 3: ")
    whole = answer(fixed_service(FakeEncoder(), indexed_run, ServeSection()), **question | {"k": None})
    assert [hit["rank"] for hit in found["results"]] == list(range(1, len(found["results"]) + 1))
    assert whole["index_version"] == found["index_version"]
    # What took too long was cancelled where it ran.
    assert service.shards[1].cancelled == (fault == "wedged")  # type: ignore[attr-defined]


def test_no_shard_at_all_is_a_503_and_a_full_one_is_passed_on(indexed_run: Config) -> None:
    question = {"query": Query(text="caption 1 of item 4"), "target": "text"}
    for faults in (("dead",) * NUM_SHARDS, (None, "full", None)):
        with pytest.raises(ProblemError) as caught:
            answer(split_service(indexed_run, faults), **question)
        assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


def test_refusals_travel_as_values() -> None:
    async def refused() -> Refusal:
        return Refusal.of(DataError("the query text is empty", got="''", expected="a word"))

    class Handle:
        class text:
            @staticmethod
            def remote(*_: object) -> Any:
                return refused()

    with pytest.raises(ProblemError, match="empty") as caught:
        asyncio.run(RemoteEncoding(Handle, index="default", release_id="r").text(""))
    assert (caught.value.status, caught.value.got, caught.value.expected) == (422, "''", "a word")


def test_shares_cover_every_row_once() -> None:
    for num_rows in (0, 1, 2, 10):
        bounds = [share_bounds(num_rows, (n, 4)) for n in range(4)]
        assert np.concatenate([np.arange(a, b) for a, b in bounds]).tolist() == list(range(num_rows))
