"""What an operator sees of a request: counts, one JSON line, its id; and that neither holds what was asked."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from tests.embeddings_run import jpeg
from tests.serving.conftest import FakeEncoder
from zscmr_ray.config import ServeSection
from zscmr_ray.errors import ConfigError
from zscmr_ray.serving.encoding import LocalEncoding, RememberedTexts
from zscmr_ray.serving.logs import LOGGER, JsonFormatter, configure_logs
from zscmr_ray.serving.metrics import Metrics, exposition
from zscmr_ray.serving.problems import ProblemError
from zscmr_ray.serving.replica import replica_context, replica_name
from zscmr_ray.serving.service import SearchService

TEXT = "caption 0 of item 3"


def test_every_stage_is_counted(http: TestClient) -> None:
    body = {"query": {"text": TEXT}}
    for _ in range(2):
        assert http.post("/v1/search", json=body).status_code == 200
    assert http.post("/v1/search", files={"image": jpeg("red")}).status_code == 200
    assert http.post("/v1/search", files={"image": b"no picture"}).status_code == 422
    page = http.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'zscmr_requests_total{replica="local",route="search",status="200"} 3.0',
        'zscmr_requests_total{replica="local",route="search",status="422"} 1.0',
        'zscmr_text_cache_total{replica="local",result="hit"} 1.0',
        'zscmr_stage_seconds_count{replica="local",stage="encode_text"} 1.0',
        'zscmr_stage_seconds_count{replica="local",stage="encode_image"} 1.0',
        'zscmr_stage_seconds_count{replica="local",stage="search"} 3.0',
        'zscmr_errors_total{kind="DataError",replica="local",stage="decode"} 1.0',
        'zscmr_queue_length{replica="local",stage="search"} 0.0',
    ):
        assert line in page.text, page.text


def test_counts_of_several_replicas_stay_apart() -> None:
    first, second = Metrics(), Metrics()
    first.refused("queue")
    second.refused("queue")
    page = exposition({"a": first.snapshot(), "b": json.loads(json.dumps(second.snapshot()))}).decode()
    assert page.count("# TYPE zscmr_refused_total counter") == 1
    assert page.count('reason="queue"') == 2


def test_a_replica_is_named_after_its_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert replica_context() is None and replica_name() == "local"
    found = SimpleNamespace(deployment="Search", replica_tag="abc")
    monkeypatch.setattr("ray.serve.context._INTERNAL_REPLICA_CONTEXT", found)
    assert replica_name() == "Search-abc"


def test_a_request_is_one_json_line_with_its_id_and_without_its_text(
    http: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger=LOGGER):
        answer = http.post("/v1/search", json={"query": {"text": TEXT}}, headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    (record,) = [record for record in caplog.records if record.message == "request"]
    line = json.loads(JsonFormatter(replica="r").format(record))
    assert (line["request_id"], line["route"], line["status"], line["replica"]) == (
        "abc-1",
        "search",
        200,
        "r",
    )
    assert TEXT not in str(line)


def test_logs_go_to_a_file_of_the_replica(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger(LOGGER)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logger.level)
    configure_logs(ServeSection(log_dir=str(tmp_path)), replica="Search-1")
    logger.warning("something", exc_info=ValueError("why"))
    (file,) = tmp_path.iterdir()
    line = json.loads(file.read_text())
    assert line["level"] == "WARNING" and "why" in line["error"]
    for handler in logger.handlers:
        handler.close()


def test_remembered_texts_are_bounded_and_the_oldest_goes() -> None:
    encoder = FakeEncoder()

    async def scenario() -> None:
        settings, metrics = ServeSection(), Metrics()
        local = LocalEncoding(encoder, settings, metrics)
        remembered = RememberedTexts(local, size=2, metrics=metrics)
        for number in (0, 1, 0, 2, 0, 1):
            await remembered.text(f"caption 0 of item {number}")
        # 0, 1, (0), 2 which puts out 1, (0), 1 again.
        assert len(encoder.batches) == 4
        local.close()

    asyncio.run(scenario())


def test_a_stopping_service_refuses_what_is_new_and_is_not_ready(
    service: SearchService, http: TestClient
) -> None:
    assert asyncio.run(service.drain(1.0)) == 0
    for answer in (http.get("/readyz"), http.post("/v1/search", json={"query": {"text": TEXT}})):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert http.get("/healthz").status_code == 200


def test_a_full_picture_queue_refuses_before_the_body_is_read(
    service: SearchService, http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalEncoding, "may_take_picture", lambda self: False)
    # Not even a multipart body: it was never read.
    answer = http.post("/v1/search", content=b"x", headers={"content-type": "multipart/form-data"})
    assert answer.status_code == 503
    assert "serve.max_queue_ms" in answer.json()["expected"]
    assert http.post("/v1/search", json={"query": {"text": TEXT}}).status_code == 200
    with pytest.raises(ProblemError, match="busy"):
        service.admit(may_hold_picture=True)


def test_scaling_bounds_and_index_names_are_checked() -> None:
    with pytest.raises(ConfigError, match="max_replicas"):
        ServeSection(num_replicas=3, max_replicas=2)
    with pytest.raises(ConfigError, match="index name"):
        ServeSection(indexes={"default": "runs/other"})
