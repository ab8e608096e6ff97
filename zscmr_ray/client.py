"""The query client: typed search over HTTP, without ray, torch or the server's half of this package.

    with Client("http://127.0.0.1:8000") as client:
        for hit in client.search(text="a smiling cat", k=5).results:
            print(hit.rank, hit.score, hit.id, hit.caption)

Answers of 429 and 503 are tried again a bounded number of times, after the time their Retry-After names, with jitter.
Every other error answer is raised at once with the server's got, expected and remedy.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from zscmr_ray.errors import ConfigError, DataError, ServingError, ZscmrError

_RETRIED = frozenset({429, 503})
_MAX_RETRY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class Hit:
    """One result; `score` is the weighted inner product, `thumbnail_url` a path on the service or None."""

    id: str
    item_id: str
    score: float
    rank: int
    caption: str | None
    labels: tuple[str, ...]
    thumbnail_url: str | None


@dataclass(frozen=True, slots=True)
class SearchResponse:
    """Results, best first, and what answered: index and model, label weight, coverage, and any shortfall's reason."""

    results: tuple[Hit, ...]
    index_version: str
    model_fingerprint: str
    label_weight: float
    coverage: float
    degraded: tuple[str, ...]
    notes: tuple[str, ...]
    timings_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Item:
    """One indexed row: an image item (`side` image) or a caption (`side` text)."""

    id: str
    item_id: str
    side: str
    labels: tuple[str, ...]
    captions: tuple[str, ...]
    thumbnail_url: str | None


class Client:
    """A connection to one service; close it, or use it in a `with` block.

    `transport` replaces the network in tests. `max_retries` bounds how often a 429, a 503 or a refused connection
    is tried again.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        max_retries: int = 4,
        seed: int | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout_s, transport=transport)
        self._max_retries = max_retries
        self._random = random.Random(seed)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def search(
        self,
        *,
        text: str | None = None,
        image: bytes | str | Path | None = None,
        id: str | None = None,  # noqa: A002  the wire's own name
        vector: Sequence[float] | None = None,
        target: str = "image",
        k: int | None = None,
        filter: Mapping[str, Sequence[str]] | None = None,  # noqa: A002
        label_weight: float | None = None,
        deadline_ms: int | None = None,
    ) -> SearchResponse:
        """Search images or captions (`target`) by exactly one of text, image (bytes or a path), id or vector.

        `filter` maps a column (labels, id, item_id) to accepted values; `label_weight` in [0, 1] is lambda. Raises
        ConfigError for a wrong question, DataError for what the service refuses, ServingError when it cannot answer.
        """
        questions = {"text": text, "image": image, "id": id, "vector": vector}
        given = [name for name, value in questions.items() if value is not None]
        if len(given) != 1:
            raise ConfigError(
                "one question at a time", got=given or "none", expected="one of text, image, id, vector"
            )
        body: dict[str, Any] = {"target": target}
        optional = {"k": k, "lambda": label_weight, "deadline_ms": deadline_ms}
        body |= {name: value for name, value in optional.items() if value is not None}
        if filter:
            body["filter"] = {column: list(values) for column, values in filter.items()}
        if image is not None:
            files = {"image": ("image", _image_bytes(image), "application/octet-stream")}
            answer = self._call("POST", "/v1/search", files=files, data={"request": json.dumps(body)})
        else:
            body["query"] = {given[0]: list(vector) if vector is not None else questions[given[0]]}
            answer = self._call("POST", "/v1/search", json=body)
        return _search_response(_json(answer))

    def item(self, item_id: str) -> Item:
        """Look up an item or a caption by id; DataError when there is none."""
        found = _json(self._call("GET", f"/v1/items/{quote(item_id, safe='')}"))
        return Item(
            id=found["id"],
            item_id=found["item_id"],
            side=found["side"],
            labels=tuple(found["labels"]),
            captions=tuple(found["captions"]),
            thumbnail_url=found["thumbnail_url"],
        )

    def thumbnail(self, item_id: str) -> bytes:
        """The JPEG thumbnail of an item (of a caption: its item's); DataError when there is none."""
        return self._call("GET", f"/v1/thumbnails/{quote(item_id, safe='')}").content

    def indexes(self) -> list[dict[str, Any]]:
        """What the service searches: versions, fingerprints, counts and measured recall."""
        return list(_json(self._call("GET", "/v1/indexes"))["indexes"])

    def ready(self, wait_s: float = 0.0) -> bool:
        """Whether the service answers; waits up to `wait_s` seconds for it."""
        end_s = time.monotonic() + wait_s
        while True:
            try:
                if self._http.get("/readyz").status_code == 200:
                    return True
            except httpx.TransportError:
                pass
            if time.monotonic() >= end_s:
                return False
            time.sleep(min(0.2, max(0.0, end_s - time.monotonic())))

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(self._max_retries + 1):
            is_last = attempt == self._max_retries
            try:
                response = self._http.request(method, path, **options)
            except httpx.ConnectError as error:
                if is_last:
                    raise ServingError(
                        "no service answers",
                        got=f"{self._http.base_url}: {error}",
                        remedy="start one with `zscmr serve`, or give its address",
                    ) from error
                self._wait(attempt, None)
                continue
            except httpx.TransportError as error:
                raise ServingError(
                    "the service did not answer",
                    got=f"{type(error).__name__}: {error}",
                    expected=f"an answer within {self._http.timeout.read} s",
                ) from error
            if response.status_code in _RETRIED and not is_last:
                self._wait(attempt, response.headers.get("Retry-After"))
                continue
            if response.is_success:
                return response
            raise _as_error(response)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _wait(self, attempt: int, retry_after: str | None) -> None:
        """Sleep as told, or 0.1 s doubled per attempt; up to half as long again, so that clients come back apart."""
        try:
            wait_s = float(retry_after) if retry_after is not None else 0.1 * 2**attempt
        except ValueError:
            wait_s = 0.1 * 2**attempt
        time.sleep(min(max(wait_s, 0.0), _MAX_RETRY_AFTER_S) * self._random.uniform(1.0, 1.5))


def _image_bytes(image: bytes | str | Path) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise ConfigError("the picture cannot be read", got=f"{image}: {error.strerror}") from error


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise ServingError(
            "the answer is not JSON", got=response.text[:200], expected="a zscmr service at this address"
        ) from error


def _as_error(response: httpx.Response) -> ZscmrError:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"title": f"HTTP {response.status_code}", "got": response.text[:200] or None}
    # 401 to 403 and 5xx are the service's word on itself; the other 4xx are about what was asked.
    is_about_question = response.status_code in {400, 404, 405, 409, 413, 415, 422}
    kind = DataError if is_about_question else ServingError
    return kind(
        f"{problem.get('title') or 'the service refused'} (HTTP {response.status_code})",
        got=problem.get("got"),
        expected=problem.get("expected"),
        remedy=problem.get("remedy"),
    )


def _search_response(found: Mapping[str, Any]) -> SearchResponse:
    hits = tuple(
        Hit(
            id=hit["id"],
            item_id=hit["item_id"],
            score=hit["score"],
            rank=hit["rank"],
            caption=hit["caption"],
            labels=tuple(hit["labels"]),
            thumbnail_url=hit["thumbnail_url"],
        )
        for hit in found["results"]
    )
    return SearchResponse(
        results=hits,
        index_version=found["index_version"],
        model_fingerprint=found["model_fingerprint"],
        label_weight=found["label_weight"],
        coverage=found["coverage"],
        degraded=tuple(found["degraded"]),
        notes=tuple(found["notes"]),
        timings_ms=dict(found["timings_ms"]),
    )
