"""Errors over HTTP: RFC 9457 problem details with got, expected, remedy and the request's id.

What it is: one exception for the service's code, and the handlers that turn it, the library's own errors, FastAPI's
and everything unforeseen into the same JSON shape. Unforeseen errors are logged whole and answered without detail.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from zscmr_ray.errors import ZscmrError
from zscmr_ray.serving.wire import Problem

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
# Where the guard leaves the request's id in the ASGI scope.
REQUEST_ID_KEY = "zscmr_request_id"
_LOG = logging.getLogger(__name__)
_MAX_SHOWN_CHARS = 300


class ProblemError(Exception):
    """A request that ends in an error answer. `retry_after_s` becomes the Retry-After header."""

    def __init__(
        self,
        status: int,
        title: str,
        *,
        got: object = None,
        expected: object = None,
        remedy: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(title)
        self.status, self.title = status, title
        self.got, self.expected, self.remedy = got, expected, remedy
        self.retry_after_s = retry_after_s


def problem_json(error: ProblemError, *, request_id: str) -> dict[str, object]:
    """The body of an error answer; what the client sent is shown cut."""
    code = HTTPStatus(error.status).phrase.lower().replace(" ", "-")
    problem = Problem(
        type=f"urn:zscmr:problem:{code}",
        title=error.title,
        status=error.status,
        detail="; ".join(
            part
            for part in (
                error.title,
                f"got: {_shown(error.got)}" if error.got is not None else "",
                f"expected: {_shown(error.expected)}" if error.expected is not None else "",
            )
            if part
        ),
        got=None if error.got is None else _shown(error.got),
        expected=None if error.expected is None else _shown(error.expected),
        remedy=error.remedy,
        request_id=request_id,
    )
    return problem.model_dump(exclude_none=True)


def problem_response(error: ProblemError, *, request_id: str) -> Response:
    """An error answer."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(
        problem_json(error, request_id=request_id),
        status_code=error.status,
        headers=headers,
        media_type=MEDIA_TYPE,
    )


def invalid_body(error: ValidationError | RequestValidationError) -> ProblemError:
    """A 422 that names the first wrong field, what it held, and every other wrong field's name."""
    faults = error.errors()
    first = faults[0]
    place = ".".join(str(part) for part in first["loc"]) or "body"
    others = sorted({".".join(str(part) for part in fault["loc"]) for fault in faults[1:]} - {place})
    return ProblemError(
        422,
        f"invalid request: {place}",
        got=repr(first.get("input")),
        expected=str(first["msg"]),
        remedy=f"see /openapi.json{'; also wrong: ' + ', '.join(others) if others else ''}",
    )


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every error of the application as problem+json."""

    async def on_problem(request: Request, error: Exception) -> Response:
        return problem_response(_as_problem(error, request), request_id=request_id_of(request))

    for kind in (ProblemError, ZscmrError, HTTPException, RequestValidationError, ValidationError, Exception):
        app.add_exception_handler(kind, on_problem)


def request_id_of(request: Request) -> str:
    """The id the guard gave this request."""
    return str(request.scope.get(REQUEST_ID_KEY, ""))


def _as_problem(error: Exception, request: Request) -> ProblemError:
    match error:
        case ProblemError():
            return error
        case ZscmrError():
            # Whatever a request can make wrong is a 4xx; what the server itself lacks is found at start-up.
            return ProblemError(
                422, error.message, got=error.got, expected=error.expected, remedy=error.remedy
            )
        case RequestValidationError() | ValidationError():
            return invalid_body(error)
        case HTTPException(status_code=404):
            return ProblemError(404, "no such path", got=request.url.path, expected="a path of /openapi.json")
        case HTTPException(status_code=405):
            return ProblemError(405, "method not allowed here", got=request.method)
        case HTTPException():
            return ProblemError(error.status_code, str(error.detail))
        case _:
            _LOG.error("request %s failed", request_id_of(request), exc_info=error)
            return ProblemError(500, "internal error", remedy="the server's log names this request_id")


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}... ({len(text)} characters)"
