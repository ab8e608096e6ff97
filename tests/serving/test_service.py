"""The service without HTTP: overload, deadlines, unforeseen errors, and what must never go live."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.embeddings_run import FINGERPRINT, run_config, unit_vectors, write_embeddings
from tests.serving.conftest import FakeEncoder, fixed_service
from zscmr_ray.config import Config, ServeSection
from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.serving.problems import ProblemError
from zscmr_ray.serving.routes import http_app
from zscmr_ray.serving.searcher import Searcher, SearchTask, check_same_model, filter_conditions
from zscmr_ray.serving.service import SearchService
from zscmr_ray.serving.wire import Query, SearchRequest
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.index import run_index


class SlowEncoder(FakeEncoder):
    """Waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        assert self.go.wait(30)
        return super().encode_texts(texts)


def ask(number: int = 0, **more: object) -> SearchRequest:
    return SearchRequest(query=Query(text=f"caption 0 of item {number}"), **more)  # type: ignore[arg-type]


@pytest.fixture
def slow(indexed_run: Config, settings: ServeSection):
    encoder = SlowEncoder()
    service = fixed_service(encoder, indexed_run, settings)
    yield service, encoder
    encoder.go.set()
    service.close()


def test_beyond_the_bound_a_request_is_told_when_to_come_back(slow) -> None:
    service, encoder = slow

    async def scenario() -> None:
        first = [asyncio.ensure_future(service.search(ask(number))) for number in range(8)]
        await asyncio.sleep(0.05)
        with pytest.raises(ProblemError) as caught:
            await service.search(ask())
        assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
        encoder.go.set()
        answers = await asyncio.gather(*first)
        assert [answer.results[0].rank for answer in answers] == [1] * 8
        # They came together, so they were encoded together.
        assert encoder.batches == [8]
        # What ended makes room again.
        await service.search(ask())

    asyncio.run(scenario())


def test_retry_after_reaches_the_client(service: SearchService, settings: ServeSection) -> None:
    service._in_flight = settings.max_queued_requests
    with TestClient(http_app(service, settings, api_keys=())) as http:
        answer = http.post("/v1/search", json={"query": {"text": "caption 0 of item 0"}})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


def test_a_deadline_ends_the_request(slow) -> None:
    service, encoder = slow

    async def scenario() -> None:
        with pytest.raises(ProblemError) as caught:
            await service.search(ask(deadline_ms=20))
        assert caught.value.status == 504
        assert caught.value.got == "no answer in 20 ms"
        encoder.go.set()
        assert (await service.search(ask(3))).results

    asyncio.run(scenario())


def test_an_unforeseen_error_tells_nothing_but_its_request_id(
    service: SearchService, settings: ServeSection, caplog: pytest.LogCaptureFixture
) -> None:
    with TestClient(http_app(service, settings, api_keys=()), raise_server_exceptions=False) as http:
        # The fake encoder cannot read this text.
        answer = http.post("/v1/search", json={"query": {"text": "secret"}})
    assert answer.status_code == 500
    assert answer.json()["title"] == "internal error"
    assert "secret" not in answer.text
    assert answer.json()["request_id"] in caplog.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_another_model_than_the_index_is_refused_with_both_hashes(indexed_run: Config) -> None:
    encoder = FakeEncoder()
    encoder.fingerprint = "cd" * 32
    with pytest.raises(RefusedError) as caught:
        fixed_service(encoder, indexed_run, ServeSection())
    assert "cd" * 32 in str(caught.value)
    assert FINGERPRINT in str(caught.value)
    check_same_model("a", "a")


def test_a_damaged_index_never_goes_live(indexed_run: Config, tmp_path: Path) -> None:
    shutil.copytree(indexed_run.data.run_uri, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "index" / "image" / "vectors.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"vectors\.npy"):
        Searcher(stage_store(run_config(tmp_path), "index"))
    with pytest.raises(DataError, match="zscmr index"):
        Searcher(stage_store(run_config(tmp_path / "nothing"), "index"))


def test_a_mixed_batch_gives_what_each_task_alone_gives(indexed_run: Config) -> None:
    searcher = Searcher(stage_store(indexed_run, "index"))
    queries = unit_vectors(6, seed=9).astype(np.float32)
    red, none = filter_conditions({"labels": ["red", "any"]}), ()
    tasks = [
        SearchTask(queries[0], "image", 3, none),
        SearchTask(queries[1], "text", 5, none),
        SearchTask(queries[2], "image", 9, none),
        SearchTask(queries[3], "image", 2, red),
        SearchTask(queries[4], "image", None, red),
        SearchTask(queries[5], "text", None, none),
    ]
    together = searcher.search(tasks)
    assert together == [searcher.search([task])[0] for task in tasks]
    assert [len(outcome.hits) for outcome in together] == [3, 5, 9, 2, 6, 10]
    assert filter_conditions({"labels": ["b", "a", "a"]}) == filter_conditions({"labels": ["a", "b"]})


def test_a_side_that_is_absent_is_named(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    write_embeddings(config, sides=["text"])
    run_index(config)
    service = fixed_service(FakeEncoder(), config, ServeSection())
    with pytest.raises(DataError, match="no image vectors"):
        asyncio.run(service.search(ask()))
    found = asyncio.run(service.search(ask(target="text")))
    assert found.results[0].thumbnail_url is None
    service.close()
