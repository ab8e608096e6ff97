"""What stands before every request: a request id, API keys, bounds on the body, and security headers on every answer.

What it is: one ASGI layer round the whole application, so that errors of the framework pass through it as well. What it
is not: authorisation; a key opens everything. The page's own files and the health checks need no key: they tell nothing.
Without a key only this machine can connect, and its browsers must not carry other sites' requests here: such requests are
refused by their Host (a name that was rebound to loopback) and by Sec-Fetch-Site.
"""

from __future__ import annotations

import asyncio
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
from zscmr_ray.serving.logs import REQUEST_ID
from zscmr_ray.serving.problems import MEDIA_TYPE, REQUEST_ID_KEY, ProblemError, problem_json

# The search page: path, file and media type.
PAGE_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/assets/page.css": ("page.css", "text/css; charset=utf-8"),
    "/assets/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/assets/api.js": ("api.js", "text/javascript; charset=utf-8"),
    "/assets/results.js": ("results.js", "text/javascript; charset=utf-8"),
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
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
# A body comes whole within this time, or not at all: a slow sender must not hold a place.
BODY_TIMEOUT_S = 30.0
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
    """The ASGI layer. `api_keys` empty = no key is asked for; `is_local` = requests must be meant for this machine."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_keys: Sequence[str],
        max_body_bytes: int,
        is_local: bool = False,
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self._app, self._api_keys, self._max_body_bytes = app, tuple(api_keys), max_body_bytes
        self._is_local, self._body_timeout_s = is_local, body_timeout_s

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
        REQUEST_ID.set(request_id)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _with_headers(message.get("headers", []), request_id)}
            await send(message)

        problem = self._refusal(scope["path"], headers)
        if problem is not None:
            await _send_problem(send_guarded, problem, request_id)
            return
        await self._app(scope, self._bounded(receive), send_guarded)

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
        if self._is_local and (problem := _foreign(path, headers)) is not None:
            return problem
        length = headers.get("content-length")
        if length is not None and not length.isdigit():
            return ProblemError(400, "Content-Length is no number", got=length)
        if length is not None and int(length) > self._max_body_bytes:
            return self._too_large(f"Content-Length {length}")
        return None

    def _bounded(self, receive: Receive) -> Receive:
        """The body as it comes, ended by a 413 once too long (a length may be missing or a lie) and by a 408 once late."""
        seen, is_whole = 0, False
        end_s = asyncio.get_running_loop().time() + self._body_timeout_s

        async def bounded() -> Message:
            nonlocal seen, is_whole
            if is_whole:
                # What comes after the body is the client's going away, whenever that is.
                return await receive()
            try:
                async with asyncio.timeout_at(end_s):
                    message = await receive()
            except TimeoutError as error:
                raise self._too_slow(seen) from error
            is_whole = not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > self._max_body_bytes:
                raise self._too_large(f"at least {seen} bytes")
            return message

        return bounded

    def _too_slow(self, seen: int) -> ProblemError:
        return ProblemError(
            408,
            "the request body came too slowly",
            got=f"{seen} bytes in {self._body_timeout_s:g} s",
            expected=f"the whole body within {self._body_timeout_s:g} s",
        )

    def _too_large(self, got: str) -> ProblemError:
        return ProblemError(
            413,
            "the request body is too large",
            got=got,
            expected=f"at most {self._max_body_bytes} bytes (serve.max_body_bytes)",
            remedy="send a smaller picture: it is reduced to the model's size anyway",
        )


def _foreign(path: str, headers: dict[str, str]) -> ProblemError | None:
    """Why a request of this machine is not meant for it: another site's name or another site's page; None if it is."""
    host = headers.get("host", "localhost")
    name = re.sub(r":\d*$", "", host).strip("[]").lower()
    if not (name in {"localhost", "::1"} or re.fullmatch(r"127(\.\d{1,3}){3}", name)):
        return ProblemError(
            421,
            "this service is for this machine only",
            got=f"Host: {host}",
            expected="localhost, 127.0.0.1 or [::1]",
            remedy="set an API key (serve.api_key_env) to serve under another name",
        )
    if headers.get("sec-fetch-site") == "cross-site" and path not in OPEN_PATHS:
        return ProblemError(
            403,
            "another site's page asks",
            got="Sec-Fetch-Site: cross-site",
            expected="this service's own page",
        )
    return None


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
