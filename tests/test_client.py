"""The query client against recorded answers: shapes, escaping, errors with their remedy, and bounded retries."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from zscmr_ray.client import AsyncClient, Client, Hit, Item
from zscmr_ray.errors import ConfigError, DataError, ServingError

HIT = {
    "id": "a#b/c",
    "item_id": "a#b/c",
    "score": 0.5,
    "rank": 1,
    "caption": "a cat",
    "labels": ["animal"],
    "thumbnail_url": "/v1/thumbnails/a%23b%2Fc",
}
ANSWER = {
    "results": [HIT],
    "index_version": "v",
    "model_fingerprint": "f",
    "label_weight": 0.5,
    "coverage": 1.0,
    "degraded": [],
    "notes": [],
    "timings_ms": {"total": 1.0},
}


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every sleep of the client, none of which is slept."""
    slept: list[float] = []
    monkeypatch.setattr("zscmr_ray.client.sync.time.sleep", slept.append)
    return slept


def client(answer: Callable[[httpx.Request], httpx.Response], **options: object) -> Client:
    return Client("http://service", transport=httpx.MockTransport(answer), seed=0, **options)  # type: ignore[arg-type]


def test_a_text_search_sends_the_wire_and_gives_types() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=ANSWER | {"something_newer": 1})

    with client(answer, api_key="secret") as asked:
        found = asked.search(
            text="a cat", target="text", k=3, filter={"labels": ("x",)}, label_weight=0.2, deadline_ms=9
        )
    assert json.loads(seen[0].content) == {
        "query": {"text": "a cat"},
        "target": "text",
        "k": 3,
        "filter": {"labels": ["x"]},
        "lambda": 0.2,
        "deadline_ms": 9,
    }
    assert found.reranked == 0
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert found.results == (Hit("a#b/c", "a#b/c", 0.5, 1, "a cat", ("animal",), "/v1/thumbnails/a%23b%2Fc"),)
    assert (found.index_version, found.label_weight, found.notes) == ("v", 0.5, ())


def test_a_picture_goes_as_an_upload_from_bytes_or_a_path(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"JPEG bytes")
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["content-type"].startswith("multipart/form-data")
        bodies.append(request.read())
        return httpx.Response(200, json=ANSWER)

    with client(answer) as asked:
        for image in (b"JPEG bytes", tmp_path / "x.jpg", str(tmp_path / "x.jpg")):
            asked.search(image=image, k=2)
    for body in bodies:
        assert b"JPEG bytes" in body
        assert b'"k": 2' in body
    with client(answer) as asked, pytest.raises(ConfigError, match="cannot be read"):
        asked.search(image=tmp_path / "nothing.jpg")


def test_re_ranking_is_asked_for_and_counted() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["rerank"] is True
        return httpx.Response(200, json=ANSWER | {"reranked": 7})

    with client(answer) as asked:
        assert asked.search(text="a cat", rerank=True).reranked == 7


def test_ids_are_escaped_whole() -> None:
    paths: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path)
        side = {"id": "s/t.tar#k?é", "item_id": "i", "side": "image", "labels": [], "captions": ["c"]}
        return httpx.Response(200, json=side | {"thumbnail_url": None})

    with client(answer) as asked:
        item = asked.item("s/t.tar#k?é")
        asked.thumbnail("s/t.tar#k?é")
    assert item == Item("s/t.tar#k?é", "i", "image", (), ("c",), None)
    assert paths == [b"/v1/items/s%2Ft.tar%23k%3F%C3%A9", b"/v1/thumbnails/s%2Ft.tar%23k%3F%C3%A9"]


def test_exactly_one_question() -> None:
    with client(lambda _: httpx.Response(200, json=ANSWER)) as asked:
        with pytest.raises(ConfigError, match="one question"):
            asked.search()
        with pytest.raises(ConfigError, match="one question"):
            asked.search(text="a", id="b")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, DataError), (422, DataError), (413, DataError), (401, ServingError), (500, ServingError)],
)
def test_a_problem_becomes_an_error_with_its_remedy(
    status: int, kind: type[Exception], naps: list[float]
) -> None:
    problem = {"title": "too much", "got": "k=99", "expected": "<= 9", "remedy": "ask for less"}
    with client(lambda _: httpx.Response(status, json=problem)) as asked, pytest.raises(kind) as caught:
        asked.search(text="a")
    assert caught.value.remedy == "ask for less"  # type: ignore[attr-defined]
    assert f"too much (HTTP {status})" in str(caught.value)
    assert naps == []


def test_an_answer_that_is_no_service_of_ours_is_said(naps: list[float]) -> None:
    with (
        client(lambda _: httpx.Response(200, text="<html>")) as asked,
        pytest.raises(ServingError, match="JSON"),
    ):
        asked.search(text="a")
    gateway = httpx.Response(502, text="bad gateway")
    with client(lambda _: gateway) as asked, pytest.raises(ServingError, match="bad gateway"):
        asked.search(text="a")
    # A proxy's word, while a replica is replaced: asked again before it is believed.
    assert len(naps) == 6


def test_a_busy_service_is_asked_again_after_the_time_it_named(naps: list[float]) -> None:
    answers = [
        httpx.Response(503, headers={"Retry-After": "3"}),
        httpx.Response(429),
        httpx.Response(200, json=ANSWER),
    ]
    with client(lambda _: answers.pop(0)) as asked:
        assert asked.search(text="a").results
    assert 3.0 <= naps[0] <= 4.5
    assert 0.2 <= naps[1] <= 0.3


def test_retries_are_bounded_and_so_is_the_wait(naps: list[float]) -> None:
    calls = 0

    def busy(_: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return httpx.Response(503, headers={"Retry-After": "86400"}, json={"title": "busy"})

    with client(busy, max_retries=2) as asked, pytest.raises(ServingError, match="busy"):
        asked.search(text="a")
    assert calls == 3
    assert all(nap <= 45 for nap in naps)


def test_no_service_and_a_timeout_are_said_with_a_remedy(naps: list[float]) -> None:
    def refused(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    def slow(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    with client(refused, max_retries=1) as asked:
        with pytest.raises(ServingError, match="zscmr serve"):
            asked.search(text="a")
        assert not asked.ready()
    assert len(naps) == 1
    with client(slow) as asked, pytest.raises(ServingError, match="ReadTimeout"):
        asked.search(text="a")
    with client(lambda _: httpx.Response(200)) as asked:
        assert asked.ready()


def test_a_broken_connection_and_a_proxys_answer_are_asked_again(naps: list[float]) -> None:
    answers = [httpx.RemoteProtocolError("cut"), httpx.Response(500, text="Internal Server Error"), None]

    def answer(request: httpx.Request) -> httpx.Response:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found or httpx.Response(200, json=ANSWER)

    with client(answer) as asked:
        assert asked.search(text="a", index="other").results
        assert asked.num_retries == len(naps) == 2


def test_the_async_client_is_the_same_client(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("zscmr_ray.client.asynchronous.asyncio.sleep", sleep)
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) == 1:
            return httpx.Response(503, headers={"Retry-After": "2"})
        if request.url.path.startswith("/v1/items"):
            return httpx.Response(404, json={"title": "no such id"})
        return httpx.Response(200, json=ANSWER)

    async def scenario() -> None:
        transport = httpx.MockTransport(answer)
        async with AsyncClient("http://service", api_key="k", seed=0, transport=transport) as asked:
            found = await asked.search(text="a", k=2, index="other")
            assert found.results[0] == Hit(
                "a#b/c", "a#b/c", 0.5, 1, "a cat", ("animal",), "/v1/thumbnails/a%23b%2Fc"
            )
            assert await asked.ready()
            with pytest.raises(DataError, match="no such id"):
                await asked.item("x")
            with pytest.raises(ConfigError, match="one question"):
                await asked.search()

    asyncio.run(scenario())
    # Other loops of this process may sleep as well.
    assert any(2.0 <= seconds <= 3.0 for seconds in slept)
    assert json.loads(seen[0].content)["index"] == "other"
    assert seen[0].headers["authorization"] == "Bearer k"


def test_both_clients_have_the_same_methods_with_the_same_words() -> None:
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_"):
            twin = getattr(AsyncClient, name)
            assert inspect.signature(method).parameters == inspect.signature(twin).parameters, name
            assert method.__doc__ == twin.__doc__, name


def test_the_client_imports_neither_ray_nor_torch() -> None:
    code = (
        "import sys, zscmr_ray.client; sys.exit(any(m in sys.modules for m in ('ray', 'torch', 'fastapi')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
