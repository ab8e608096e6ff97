"""The outermost ASGI layer: every answer is counted and logged as one line, refusals of the guard included.

What is logged: request id, method, route's name, status, time. Never the query, the path's ids, headers or bodies.
"""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zscmr_ray.serving.logs import log_event
from zscmr_ray.serving.metrics import Metrics
from zscmr_ray.serving.problems import REQUEST_ID_KEY

_LOG = logging.getLogger(__name__)


class Observed:
    """Counts and logs what passes through."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and note how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            # No status: the client went away, or Serve cancelled the request.
            seconds = time.perf_counter() - began_s
            route = getattr(scope.get("endpoint"), "__name__", "none")
            self._metrics.answered(route, status, seconds)
            log_event(
                _LOG,
                "request",
                request_id=scope.get(REQUEST_ID_KEY, ""),
                method=scope["method"],
                route=route,
                status=status,
                duration_ms=round(seconds * 1000, 3),
            )
