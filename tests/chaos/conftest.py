"""A real S3 server behind the fault proxy, and retries that wait milliseconds instead of seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.fault_proxy import FaultProxy
from tests.s3_server import S3Server, environment_set
from zscmr_ray.storage import retry, s3_request


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> retry.RetryPolicy:
    """As many attempts as always, but short waits and timeouts."""
    policy = retry.RetryPolicy(first_wait_s=0.01, max_wait_s=0.04, max_total_s=30)
    monkeypatch.setattr(retry, "POLICY", policy)
    monkeypatch.setattr(s3_request, "READ_TIMEOUT_S", 0.5)
    return policy


@pytest.fixture
def proxy(s3_server: S3Server, quick_retries: retry.RetryPolicy) -> Iterator[FaultProxy]:
    """The proxy before the session's server; the usual AWS variables point at the proxy."""
    with (
        FaultProxy(s3_server.endpoint).running() as running,
        environment_set({"AWS_ENDPOINT_URL": running.url}),
    ):
        yield running
