"""`rerank: true`: the order of the pair scores over the shortlist, by the deployment and in process, and its refusals."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import serve
from starlette.testclient import TestClient

from tests.serving.imfa_run import NUM_ITEMS
from tests.stages.corpus import jpeg
from zscmr_ray.config import Config
from zscmr_ray.engine.vector_model import find_model
from zscmr_ray.recipes import vary
from zscmr_ray.retrieval.gallery import Gallery
from zscmr_ray.retrieval.ordering import tie_ranks
from zscmr_ray.retrieval.pair_search import reranked as reference_scores
from zscmr_ray.serving.app import build_app, open_service
from zscmr_ray.serving.reranker import Reranker, Shortlist
from zscmr_ray.serving.routes import http_app
from zscmr_ray.serving.service import SearchService
from zscmr_ray.stages import stage_store

WORDS = "a picture of kind b"


def search(http: TestClient, **body: Any) -> Any:
    return http.post("/v1/search", json=body)


def pair_scores(config: Config, ids: list[str]) -> np.ndarray:
    images = Gallery(Path(config.data.run_uri) / "index/image")
    place = find_model("checkpoint", own=stage_store(config, "train"))
    return Reranker(place, images).rerank([Shortlist(WORDS, tuple(ids))])[0]


def test_the_order_is_the_evaluations_over_the_shortlist(imfa_config: Config) -> None:
    """As retrieval/pair_search.py ranks: the best by vector, by pair score."""
    config = vary(imfa_config, recipe="fgan", serve={"rerank_top_n": 9})
    service = open_service(config)
    with TestClient(http_app(service, config.serve, api_keys=())) as http:
        plain = search(http, query={"text": WORDS}, k=NUM_ITEMS).json()
        found = search(http, query={"text": WORDS}, k=5, rerank=True).json()
    service.close()
    ids = [hit["id"] for hit in plain["results"]]
    vector_1N = np.array([[hit["score"] for hit in plain["results"]]], np.float32)
    pair_1N = pair_scores(config, ids)[None]
    expected = np.argsort(-reference_scores(vector_1N, pair_1N, top_k=9, ties_N=tie_ranks(ids))[0])[:5]
    assert [hit["id"] for hit in found["results"]] == [ids[row] for row in expected]
    assert [hit["rank"] for hit in found["results"]] == [1, 2, 3, 4, 5]
    for hit, row in zip(found["results"], expected, strict=True):
        assert hit["score"] == pytest.approx(pair_1N[0, row], abs=1e-5)
    assert (found["reranked"], plain["reranked"]) == (9, 0)
    assert "rerank" in found["timings_ms"] and "rerank" not in plain["timings_ms"]
    assert found["degraded"] == []


def test_a_caption_by_its_id_and_a_filter_work_and_indexes_say_so(imfa_http: TestClient) -> None:
    (index,) = imfa_http.get("/v1/indexes").json()["indexes"]
    assert index["rerank"] is True
    by_id = search(imfa_http, query={"id": "a.tar#0000#0"}, rerank=True, k=4).json()
    by_text = search(imfa_http, query={"text": "a picture of kind a number 0"}, rerank=True, k=4).json()
    assert [hit["id"] for hit in by_id["results"]] == [hit["id"] for hit in by_text["results"]]
    few = search(imfa_http, query={"text": WORDS}, rerank=True, k=10, filter={"labels": ["kind b"]}).json()
    assert few["reranked"] == len(few["results"]) == 8
    assert few["notes"] == ["8 of 10: only 8 rows meet the filter"]
    enough = search(imfa_http, query={"text": WORDS}, rerank=True, k=8, filter={"labels": ["kind b"]}).json()
    assert enough["notes"] == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"query": {"text": WORDS}, "target": "text"}, "target image"),
        ({"query": {"id": "a.tar#0000"}}, "query.id of a caption"),
        ({"query": {"vector": [1.0]}}, "query.text"),
    ],
)
def test_questions_without_words_are_refused(
    imfa_http: TestClient, body: dict[str, Any], expected: str
) -> None:
    answer = search(imfa_http, rerank=True, **body)
    assert answer.status_code == 422
    assert answer.json()["title"] == "this question cannot be re-ranked"
    assert expected in answer.json()["expected"]


def test_pictures_and_indexes_without_regions_are_refused(imfa_http: TestClient, http: TestClient) -> None:
    upload = imfa_http.post("/v1/search", files={"image": jpeg(1)}, data={"request": '{"rerank": true}'})
    assert upload.status_code == 422 and upload.json()["got"] == "an uploaded image"
    plain = search(http, query={"text": "caption 0 of item 0"}, rerank=True)
    assert plain.status_code == 422
    assert "embed.regions=true" in plain.json()["remedy"]


def test_when_the_second_stage_fails_the_first_ones_order_stands_and_it_is_said(
    imfa_service: SearchService, imfa_http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = search(imfa_http, query={"text": WORDS}, k=3).json()
    with imfa_service.indexes_served.pinned("default") as version:
        reranking = version.reranking

    async def broken(shortlist: Shortlist) -> Any:
        raise RuntimeError("the process is gone")

    async def slow(shortlist: Shortlist) -> Any:
        await asyncio.sleep(30)

    for replacement, reason in (
        (broken, "rerank: failed (RuntimeError)"),
        (slow, "rerank: no answer in 2000 ms"),
    ):
        monkeypatch.setattr(reranking, "rerank", replacement)
        found = search(imfa_http, query={"text": WORDS}, k=3, rerank=True).json()
        assert found["results"] == plain["results"] and found["reranked"] == 0
        assert found["degraded"] == [reason]


def test_the_deployment_of_its_own_gives_the_same_answer(imfa_config: Config, imfa_http: TestClient) -> None:
    expected = search(imfa_http, query={"text": WORDS}, rerank=True, k=5).json()
    handle = serve.run(build_app(imfa_config), _local_testing_mode=True)
    found = handle.search.remote({"query": {"text": WORDS}, "rerank": True, "k": 5}).result()
    assert found["results"] == expected["results"]
    assert found["reranked"] == expected["reranked"] == NUM_ITEMS


def test_no_replicas_no_second_stage(imfa_config: Config) -> None:
    config = vary(imfa_config, recipe="fgan", serve={"rerank_replicas": 0})
    handle = serve.run(build_app(config), _local_testing_mode=True)
    assert handle.search.remote({"query": {"text": WORDS}, "k": 2}).result()["results"]
    with pytest.raises(Exception, match="cannot be re-ranked"):
        handle.search.remote({"query": {"text": WORDS}, "rerank": True}).result()
