"""What stands before every request: keys, the body cap (declared, lied about or streamed), request ids."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from zscmr_ray.config import ServeSection
from zscmr_ray.errors import ConfigError
from zscmr_ray.serving.guard import PAGE_FILES, SECURITY_HEADERS, Guard, key_is_known, read_api_keys
from zscmr_ray.serving.problems import ProblemError
from zscmr_ray.serving.routes import http_app
from zscmr_ray.serving.service import SearchService


@pytest.fixture
def locked(service: SearchService, settings: ServeSection) -> Iterator[TestClient]:
    with TestClient(http_app(service, settings, api_keys=("first", "second"))) as client:
        yield client


def test_any_of_several_keys_opens_and_nothing_else_does(locked: TestClient) -> None:
    for headers in (
        {},
        {"authorization": "Bearer third"},
        {"authorization": "Basic first"},
        {"x-api-key": ""},
    ):
        refused = locked.get("/v1/indexes", headers=headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["title"] == "an API key is needed"
        assert "third" not in refused.text
    for headers in (
        {"authorization": "Bearer first"},
        {"authorization": "bearer second"},
        {"x-api-key": "second"},
    ):
        assert locked.get("/v1/indexes", headers=headers).status_code == 200


def test_only_the_page_and_health_need_no_key(locked: TestClient) -> None:
    for path in (*PAGE_FILES, "/healthz", "/readyz"):
        assert locked.get(path).status_code == 200
    for path in ("/v1/items/x", "/v1/thumbnails/x", "/v1/indexes", "/openapi.json", "/nowhere"):
        assert locked.get(path).status_code == 401


def test_keys_are_compared_whole() -> None:
    assert key_is_known("abc", ["x", "abc"])
    assert not key_is_known("ab", ["abc"])
    assert not key_is_known("", ["abc"])
    assert not key_is_known("abc", [])


def test_another_host_needs_a_key_and_loopback_takes_one_when_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZSCMR_API_KEY", raising=False)
    assert read_api_keys(ServeSection()) == ()
    with pytest.raises(ConfigError, match="API key"):
        read_api_keys(ServeSection(host="0.0.0.0"))
    monkeypatch.setenv("ZSCMR_API_KEY", " , ")
    with pytest.raises(ConfigError, match="API key"):
        read_api_keys(ServeSection(host="0.0.0.0"))
    monkeypatch.setenv("ZSCMR_API_KEY", "one, two,")
    assert read_api_keys(ServeSection()) == read_api_keys(ServeSection(host="0.0.0.0")) == ("one", "two")


def test_a_large_body_is_refused_by_its_length_before_it_is_read(http: TestClient) -> None:
    answer = http.post("/v1/search", content=b" " * 20_001, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["got"] == "Content-Length 20001"
    assert "20000" in answer.json()["expected"]


def test_a_streamed_body_without_a_length_is_cut_off(http: TestClient) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * 5_000

    for content_type in ("application/json", "multipart/form-data; boundary=x"):
        answer = http.post("/v1/search", content=endless(), headers={"content-type": content_type})
        assert answer.status_code == 413, answer.text
        assert answer.json()["title"] == "the request body is too large"


def test_request_ids_are_taken_over_when_sane_and_made_otherwise(http: TestClient) -> None:
    assert http.get("/healthz", headers={"x-request-id": "abc-1.2"}).headers["x-request-id"] == "abc-1.2"
    for bad in ("a b", "x" * 65, "<script>"):
        made = http.get("/healthz", headers={"x-request-id": bad}).headers["x-request-id"]
        assert made != bad
        assert len(made) == 32


def test_every_key_is_compared_by_the_constant_time_function(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    real = hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr("zscmr_ray.serving.guard.hmac.compare_digest", counting)
    assert key_is_known("first", ["first", "second", "a much longer key"])
    # Digests of one length, and no stopping at the first match.
    assert compared == [(32, 32)] * 3


@pytest.fixture
def local(service: SearchService, settings: ServeSection) -> Iterator[TestClient]:
    app = http_app(service, settings, api_keys=(), is_local=True)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


def test_without_a_key_other_names_and_other_sites_pages_are_refused(local: TestClient) -> None:
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "127.0.0.2"):
        assert local.get("/v1/indexes", headers={"host": host}).status_code == 200, host
    for host in (
        "evil.example",
        "127.0.0.1.evil.example:8000",
        "localhost.evil.example",
        "10.0.0.1",
        "::1x",
        "",
    ):
        answer = local.get("/", headers={"host": host})
        assert answer.status_code == 421, host
        assert "content-security-policy" in answer.headers
    for site, status in (("cross-site", 403), ("same-origin", 200), ("none", 200)):
        assert local.get("/v1/indexes", headers={"sec-fetch-site": site}).status_code == status
    # A link on another site may open the page.
    assert local.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200


def test_a_body_that_drips_is_refused_in_time_and_a_waiting_client_is_not() -> None:
    seen: list[object] = []

    async def app(scope: object, receive: object, send: object) -> None:
        try:
            while True:
                message = await receive()  # type: ignore[operator]
                seen.append(message["type"])
                if message["type"] == "http.disconnect":
                    return
        except ProblemError as error:
            seen.append(error.status)

    async def scenario(*, is_whole: bool) -> None:
        messages = [{"type": "http.request", "body": b"x", "more_body": not is_whole}]

        async def receive() -> dict[str, object]:
            if messages:
                return messages.pop()
            await asyncio.sleep(0.2)
            return {"type": "http.disconnect"}

        scope = {"type": "http", "path": "/", "headers": []}
        guard = Guard(app, api_keys=(), max_body_bytes=10, body_timeout_s=0.05)
        await guard(scope, receive, receive)  # type: ignore[arg-type]

    asyncio.run(scenario(is_whole=False))
    assert seen == ["http.request", 408]
    seen.clear()
    asyncio.run(scenario(is_whole=True))
    assert seen == ["http.request", "http.disconnect"]


def test_no_key_and_no_question_reaches_a_log(
    service: SearchService,
    settings: ServeSection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret, question = "s3cret-key-of-a-customer", "what only the customer knows"
    monkeypatch.setattr(service, "search", lambda *_, **__: 1 / 0)
    app = http_app(service, settings, api_keys=(secret,))
    headers = {"authorization": f"Bearer {secret}"}
    with caplog.at_level(logging.DEBUG), TestClient(app, raise_server_exceptions=False) as client:
        body = {"query": {"text": question}}
        failed = client.post("/v1/search", json=body, headers=headers)
        refused = client.post("/v1/search", json=body, headers={"x-api-key": secret[:-1]})
    assert (failed.status_code, refused.status_code) == (500, 401)
    assert failed.json()["title"] == "internal error" and "ZeroDivision" not in failed.text
    said = "\n".join(f"{r.name} {r.getMessage()} {r.exc_text}" for r in caplog.records if r.name != "httpx")
    assert "ZeroDivisionError" in said and failed.json()["request_id"] in said
    for text in (said, failed.text, refused.text):
        assert secret not in text and secret[:-1] not in text and question not in text


def test_hostile_paths_reach_neither_files_nor_other_hosts(http: TestClient) -> None:
    for path in (
        "/assets/../../../../etc/passwd",
        "/assets/..%2f..%2fguard.py",
        "/assets/page.js/..%2f..%2fwire.py",
        "/v1/thumbnails/%2Fetc%2Fpasswd",
        "/v1/thumbnails/file%3A%2F%2F%2Fetc%2Fpasswd",
        "/v1/items/http%3A%2F%2F169.254.169.254%2Flatest",
        "/v1/items/%00",
        "/v1/items/%ff%fe",
    ):
        answer = http.get(path)
        assert answer.status_code == 404, path
        assert answer.json()["status"] == 404 and "root:" not in answer.text
        assert SECURITY_HEADERS.items() <= dict(answer.headers).items()


def test_content_types_are_taken_at_their_word(http: TestClient) -> None:
    body = json.dumps({"query": {"text": "caption 0 of item 0"}}).encode()
    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "",
        "text/json",
    ):
        answer = http.post("/v1/search", content=body, headers={"content-type": content_type})
        assert answer.status_code == 415, content_type
    for content_type in ("application/json", "Application/JSON; charset=utf-8"):
        assert (
            http.post("/v1/search", content=body, headers={"content-type": content_type}).status_code == 200
        )
