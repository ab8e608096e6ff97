"""Requests made from the OpenAPI document, right and wrong ones: none is answered by a 5xx, and answers are as it says.

But for a 504 to a request whose own `deadline_ms` is under a second.

In process, over a real small run of IMFA (encoder, index with regions). A short run here, a long one in `make test-long`.
"""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from zscmr_ray.config import Config
from zscmr_ray.serving.routes import http_app
from zscmr_ray.serving.service import SearchService

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
OPERATIONS = (
    "POST /v1/search",
    "POST /v1/embeddings",
    "GET /v1/items/{item_id}",
    "GET /v1/thumbnails/{item_id}",
    "GET /v1/indexes",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
)
EXAMPLES, EXAMPLES_LONG = 12, 1500
HURRIED_MS = 1000


@pytest.fixture(scope="module")
def document(imfa_service: SearchService, imfa_config: Config) -> Any:
    app = http_app(imfa_service, imfa_config.serve, api_keys=())
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_the_document_names_every_operation(document: Any) -> None:
    named = {
        f"{method.upper()} {path}"
        for path, methods in document.raw_schema["paths"].items()
        for method in methods
    }
    assert named == set(OPERATIONS)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_few_requests_of_every_operation(document: Any, name: str, mode: GenerationMode) -> None:
    try_requests(document, name, mode, max_examples=EXAMPLES)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("name", OPERATIONS)
def test_many_requests_of_every_operation(document: Any, name: str, mode: GenerationMode) -> None:
    try_requests(document, name, mode, max_examples=EXAMPLES_LONG)


def try_requests(document: Any, name: str, mode: GenerationMode, *, max_examples: int) -> None:
    """Send requests that fit the document (positive), or do not (negative)."""
    method, path = name.split()
    operation = document[path][method]
    parameters = [*operation.path_parameters, *operation.query, *operation.body]
    if mode is GenerationMode.NEGATIVE and not parameters:
        return

    @settings(
        max_examples=max_examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = case.call()
        is_own_doing = response.status_code == 504 and is_hurried(case.body)
        case.validate_response(response, checks=CHECKS[1:] if is_own_doing else CHECKS)

    ask()


def is_hurried(body: Any) -> bool:
    """Whether a request sets itself a deadline that is shorter than the work: its 504 is what it asked for."""
    deadline_ms = body.get("deadline_ms") if isinstance(body, dict) else None
    return isinstance(deadline_ms, int) and deadline_ms < HURRIED_MS
