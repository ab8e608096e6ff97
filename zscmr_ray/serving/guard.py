"""What stands before every request: a request id, API keys, the body cap, and security headers on every answer.

What it is: one ASGI layer round the whole application, so that errors of the framework pass through it as well. What it
is not: authorisation; a key opens everything. The page's own files and the health checks need no key: they tell nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zscmr_ray.config import ServeSection
from zscmr_ray.errors import ConfigError
from zscmr_ray.serving.problems import MEDIA_TYPE, REQUEST_ID_KEY, ProblemError, problem_json

# The search page: path, file and media type.
PAGE_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/assets/page.css": ("page.css", "text/css; charset=utf-8"),
    "/assets/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/assets/icon.svg": ("icon.svg", "image/svg+xml"),
}
OPEN_PATHS = frozenset({"/healthz", "/readyz", *PAGE_FILES})
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def read_api_keys(settings: ServeSection) -> tuple[str, ...]:
    """The API keys of this process's environment, possibly none; ConfigError when none is set but one is needed."""
    raw = os.environ.get(settings.api_key_env, "") if settings.api_key_env else ""
    keys = tuple(key.strip() for key in raw.split(",") if key.strip())
    if not keys and not settings.is_loopback:
        raise ConfigError(
            "a service that other machines can reach needs an API key",
            got=f"serve.host={settings.host}, no key in {settings.api_key_env}",
            expected="one or more keys, comma-separated, in that environment variable (on every node)",
            remedy=f"export {settings.api_key_env}=$(openssl rand -hex 32), or --set serve.host=127.0.0.1",
        )
    return keys


def key_is_known(candidate: str, keys: Sequence[str]) -> bool:
    """Whether a key is one of ours, in a time that depends on neither its length nor how much of it is right."""
    digest = hashlib.sha256(candidate.encode()).digest()
    # Every key is compared: stopping at the first match would tell which one it was.
    matches = [hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest()) for key in keys]
    return any(matches)


class Guard:
    """The ASGI layer. `api_keys` empty = no key is asked for."""

    def __init__(self, app: ASGIApp, *, api_keys: Sequence[str], max_body_bytes: int) -> None:
        self._app, self._api_keys, self._max_body_bytes = app, tuple(api_keys), max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a problem."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        sent_id = headers.get("x-request-id", "")
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
        scope[REQUEST_ID_KEY] = request_id

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _with_headers(message.get("headers", []), request_id)}
            await send(message)

        problem = self._refusal(scope["path"], headers)
        if problem is not None:
            await _send_problem(send_guarded, problem, request_id)
            return
        await self._app(scope, self._counted(receive), send_guarded)

    def _refusal(self, path: str, headers: dict[str, str]) -> ProblemError | None:
        if self._api_keys and path not in OPEN_PATHS:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            if not key_is_known(given, self._api_keys):
                return ProblemError(
                    401,
                    "an API key is needed",
                    got="another key" if given else "no key",
                    expected="Authorization: Bearer <key>",
                )
        length = headers.get("content-length")
        if length is not None and not length.isdigit():
            return ProblemError(400, "Content-Length is no number", got=length)
        if length is not None and int(length) > self._max_body_bytes:
            return self._too_large(f"Content-Length {length}")
        return None

    def _counted(self, receive: Receive) -> Receive:
        """The body as it comes, cut off with a 413 once it is too long: a length may be missing or a lie."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_body_bytes:
                raise self._too_large(f"at least {seen} bytes")
            return message

        return counted

    def _too_large(self, got: str) -> ProblemError:
        return ProblemError(
            413,
            "the request body is too large",
            got=got,
            expected=f"at most {self._max_body_bytes} bytes (serve.max_body_bytes)",
            remedy="send a smaller picture: it is reduced to the model's size anyway",
        )


def _with_headers(headers: Any, request_id: str) -> list[tuple[bytes, bytes]]:
    present = {name.lower() for name, _ in headers}
    added = SECURITY_HEADERS | {"x-request-id": request_id, "cache-control": "no-store"}
    return [
        *headers,
        *((n.encode(), v.encode("latin-1")) for n, v in added.items() if n.encode() not in present),
    ]


async def _send_problem(send: Send, problem: ProblemError, request_id: str) -> None:
    body = json.dumps(problem_json(problem, request_id=request_id)).encode()
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    if problem.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
