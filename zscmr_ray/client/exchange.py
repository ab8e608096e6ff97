"""One question as an HTTP request, one answer as a value, an error or a wait: all that both clients share, without any I/O.

429, 503                                    asked again after Retry-After
404 to 504 that is not a problem of ours    a proxy's word while a replica is replaced: asked again
a connection refused or broken              asked again: nothing a client asks changes anything
any other error answer, a timeout           raised at once
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from zscmr_ray.errors import ConfigError, DataError, ServingError, ZscmrError

_BUSY = frozenset({429, 503})
_PROXY = frozenset({404, 500, 502, 503, 504})
_MAX_WAIT_S = 30.0
_FIRST_WAIT_S = 0.1
# What the connection did not survive; a timeout is not among them: the work may be what takes long.
BROKEN = (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


def search_request(
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
    index: str | None = None,
    rerank: bool = False,
) -> dict[str, Any]:
    """The options of httpx for `POST /v1/search`; ConfigError for anything but one question."""
    questions = {"text": text, "image": image, "id": id, "vector": vector}
    given = [name for name, value in questions.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(
            "one question at a time", got=given or "none", expected="one of text, image, id, vector"
        )
    body: dict[str, Any] = {"target": target}
    optional: dict[str, Any] = {"k": k, "lambda": label_weight, "deadline_ms": deadline_ms, "index": index}
    optional["rerank"] = rerank or None
    body |= {name: value for name, value in optional.items() if value is not None}
    if filter:
        body["filter"] = {column: list(values) for column, values in filter.items()}
    if image is not None:
        files = {"image": ("image", _image_bytes(image), "application/octet-stream")}
        return {"files": files, "data": {"request": json.dumps(body)}}
    body["query"] = {given[0]: list(vector) if vector is not None else questions[given[0]]}
    return {"json": body}


def should_retry(response: httpx.Response) -> bool:
    """Whether an answer is worth asking again for."""
    if response.status_code in _BUSY:
        return True
    return response.status_code in _PROXY and _problem(response) is None


def wait_s(attempt: int, retry_after: str | None, rng: random.Random) -> float:
    """Seconds to wait before asking again: as told, or 0.1 s doubled per attempt; up to half as long again, so that
    clients come back apart.
    """
    seconds = _FIRST_WAIT_S * 2**attempt
    with contextlib.suppress(ValueError):
        seconds = seconds if retry_after is None else float(retry_after)
    return min(max(seconds, 0.0), _MAX_WAIT_S) * rng.uniform(1.0, 1.5)


def transport_error(
    error: httpx.TransportError, *, base_url: object, timeout_s: float | None
) -> ServingError:
    """What a connection that failed for good means."""
    if isinstance(error, httpx.ConnectError):
        return ServingError(
            "no service answers",
            got=f"{base_url}: {error}",
            remedy="start one with `zscmr serve`, or give its address",
        )
    return ServingError(
        "the service did not answer",
        got=f"{type(error).__name__}: {error}",
        expected=f"an answer within {timeout_s} s",
    )


def _image_bytes(image: bytes | str | Path) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise ConfigError("the picture cannot be read", got=f"{image}: {error.strerror}") from error


def json_of(response: httpx.Response) -> Any:
    """The JSON of an answer; ServingError when it is none."""
    try:
        return response.json()
    except ValueError as error:
        raise ServingError(
            "the answer is not JSON", got=response.text[:200], expected="a zscmr service at this address"
        ) from error


def error_of(response: httpx.Response) -> ZscmrError:
    """The error that an answer is: DataError about what was asked, ServingError about the service."""
    problem = _problem(response) or {
        "title": f"HTTP {response.status_code}",
        "got": response.text[:200] or None,
    }
    # 401 to 403 and 5xx are the service's word on itself; the other 4xx are about what was asked.
    is_about_question = response.status_code in {400, 404, 405, 409, 413, 415, 422}
    kind = DataError if is_about_question else ServingError
    return kind(
        f"{problem.get('title') or 'the service refused'} (HTTP {response.status_code})",
        got=problem.get("got"),
        expected=problem.get("expected"),
        remedy=problem.get("remedy"),
    )


def _problem(response: httpx.Response) -> dict[str, Any] | None:
    try:
        problem = response.json()
    except ValueError:
        return None
    return problem if isinstance(problem, dict) else None
