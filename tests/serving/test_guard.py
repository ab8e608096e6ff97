"""What stands before every request: keys, the body cap (declared, lied about or streamed), request ids."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from zscmr_ray.config import ServeSection
from zscmr_ray.errors import ConfigError
from zscmr_ray.serving.guard import PAGE_FILES, key_is_known, read_api_keys
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
