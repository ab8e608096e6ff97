"""Requests made from the OpenAPI document, right and wrong ones: none is answered by a 5xx, and answers are as it says.

In process, over a real small run of IMFA (encoder, index with regions). A short run here, a long one in `make test-long`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.imfa_run import imfa_run
from zscmr_ray.serving.app import open_service
from zscmr_ray.serving.routes import http_app

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
OPERATIONS = {
    "POST /v1/search",
    "GET /v1/items/{item_id}",
    "GET /v1/thumbnails/{item_id}",
    "GET /v1/indexes",
    "GET /healthz",
    "GET /readyz",
}
QUICK = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None, "derandomize": True}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    config = imfa_run(tmp_path_factory.mktemp("openapi"))
    service = open_service(config)
    yield schemathesis.openapi.from_asgi("/openapi.json", http_app(service, config.serve, api_keys=()))
    service.close()


schema = schemathesis.pytest.from_fixture("document")


def answer(case: Any) -> None:
    case.validate_response(case.call(), checks=CHECKS)


@schema.parametrize()
@settings(max_examples=25, **QUICK)
def test_a_few_requests_of_every_operation(case: Any) -> None:
    answer(case)


@pytest.mark.long
@pytest.mark.timeout(1800)
@schema.parametrize()
@settings(max_examples=2000, **QUICK)
def test_many_requests_of_every_operation(case: Any) -> None:
    answer(case)


def test_the_document_names_every_operation(document: Any) -> None:
    named = {
        f"{method.upper()} {path}"
        for path, methods in document.raw_schema["paths"].items()
        for method in methods
    }
    assert named >= OPERATIONS
