"""The HTTP side in process: questions of every kind, ids that need escaping, and what must be refused."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from tests.embeddings_run import BLOCKS, COLOURS, FINGERPRINT, item_ids, jpeg, unit_vectors
from zscmr_ray.serving.guard import PAGE_FILES, SECURITY_HEADERS

IDS = item_ids(12)


def search(http: TestClient, **body: object):
    return http.post("/v1/search", json=body)


def assert_problem(answer, status: int, *, title: str) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert title in problem["title"]
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    return problem


def test_a_text_finds_its_own_caption_first(http: TestClient) -> None:
    answer = search(http, query={"text": "caption 1 of item 5"}, target="text", k=3)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [hit["rank"] for hit in found["results"]] == [1, 2, 3]
    best = found["results"][0]
    assert best["id"] == f"{IDS[5]}#1"
    assert best["item_id"] == IDS[5]
    assert best["caption"] == "caption 1 of item 5"
    assert best["labels"] == [COLOURS[2]]
    assert best["score"] == pytest.approx(1.0, abs=2e-3)
    assert found["model_fingerprint"] == FINGERPRINT
    assert found["coverage"] == 1.0
    assert found["label_weight"] == 0.25
    assert found["degraded"] == found["notes"] == []
    assert set(found["timings_ms"]) == {"encode", "search", "total"}


def test_scores_are_weighted_inner_products_and_lambda_changes_them(http: TestClient) -> None:
    query = unit_vectors(24, seed=2)[11].astype(float)
    gallery = unit_vectors(12, seed=1).astype(float)
    for weight in (0.0, 0.3, 1.0):
        found = search(http, query={"text": "caption 1 of item 5"}, k=12, **{"lambda": weight}).json()
        expected = (1 - weight) * gallery[:, :6] @ query[:6] + weight * gallery[:, 6:] @ query[6:]
        scores = {hit["id"]: hit["score"] for hit in found["results"]}
        for number, item_id in enumerate(IDS):
            assert scores[item_id] == pytest.approx(expected[number], abs=1e-5)


def test_an_id_with_every_awkward_character_is_found_by_every_route(http: TestClient) -> None:
    assert set("#/ ?é") <= set(IDS[4])
    found = search(http, query={"id": IDS[4]}, k=1).json()["results"][0]
    assert found["id"] == IDS[4]
    item = http.get(f"/v1/items/{quote(IDS[4], safe='')}").json()
    assert item["id"] == IDS[4]
    assert item["side"] == "image"
    assert item["captions"] == ["caption 0 of item 4", "caption 1 of item 4"]
    picture = http.get(item["thumbnail_url"])
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content == jpeg(COLOURS[1])
    assert http.get(found["thumbnail_url"]).content == picture.content
    text = http.get(f"/v1/items/{quote(IDS[4] + '#1', safe='')}").json()
    assert (text["side"], text["item_id"], text["captions"]) == ("text", IDS[4], ["caption 1 of item 4"])
    assert http.get(f"/v1/thumbnails/{quote(IDS[4] + '#1', safe='')}").content == picture.content


def test_an_item_without_a_thumbnail_says_so(http: TestClient) -> None:
    assert http.get(f"/v1/items/{quote(IDS[0], safe='')}").json()["thumbnail_url"] is None
    assert_problem(http.get(f"/v1/thumbnails/{quote(IDS[0], safe='')}"), 404, title="no thumbnail")


def test_upload_and_base64_of_one_picture_agree(http: TestClient) -> None:
    picture = jpeg("purple")
    upload = http.post("/v1/search", files={"image": ("x.jpg", picture)}, data={"request": '{"k": 4}'})
    inline = search(http, query={"image_b64": base64.b64encode(picture).decode()}, k=4)
    assert upload.status_code == inline.status_code == 200, upload.text
    assert upload.json()["results"] == inline.json()["results"]
    assert len(upload.json()["results"]) == 4
    assert http.post("/v1/search", files={"image": ("x.jpg", picture)}).status_code == 200


def test_a_vector_query_is_weighted_like_any_other(http: TestClient) -> None:
    vector = unit_vectors(24, seed=2)[11].astype(float).tolist()
    by_vector = search(http, query={"vector": vector}, target="text", k=5).json()["results"]
    by_text = search(http, query={"text": "caption 1 of item 5"}, target="text", k=5).json()["results"]
    assert by_vector == by_text


def test_a_filter_gives_only_its_rows_and_says_why_there_are_few(http: TestClient) -> None:
    found = search(http, query={"id": IDS[1]}, k=10, filter={"labels": ["red"]}).json()
    assert {hit["id"] for hit in found["results"]} == {IDS[n] for n in (0, 3, 6, 9)}
    assert found["notes"] == ["4 of 10: only 4 rows meet the filter"]
    nothing = search(http, query={"id": IDS[1]}, filter={"labels": ["mauve"]}).json()
    assert nothing["results"] == []
    assert nothing["notes"] == ["0 of 10: only 0 rows meet the filter"]


def test_k_none_is_ten_and_k_beyond_the_gallery_or_the_cap_is_refused(http: TestClient) -> None:
    assert len(search(http, query={"id": IDS[1]}).json()["results"]) == 10
    problem = assert_problem(search(http, query={"id": IDS[1]}, k=13), 422, title="larger than the gallery")
    assert problem["got"] == "k=13"
    assert "12" in str(problem["expected"])
    assert problem["remedy"] == "ask for k <= 12"
    assert_problem(search(http, query={"id": IDS[1]}, k=21), 422, title="larger than this service allows")


@pytest.mark.parametrize(
    ("body", "status", "title"),
    [
        ({}, 422, "one question at a time"),
        ({"query": {}}, 422, "one question at a time"),
        ({"query": {"text": "a", "id": "b"}}, 422, "invalid request"),
        ({"query": {"text": "   "}}, 422, "empty"),
        ({"query": {"text": "a" * 5000}}, 422, "query.text"),
        ({"query": {"id": "nobody"}}, 404, "no such id"),
        ({"query": {"url": "http://example.org/x.jpg"}}, 422, "query.url"),
        ({"query": {"image_b64": "http://example.org/x.jpg"}}, 422, "not base64"),
        ({"query": {"image_b64": ""}}, 422, "picture"),
        ({"query": {"image_b64": base64.b64encode(b"<html>").decode()}}, 422, "picture"),
        ({"query": {"vector": [0.5, 0.5]}}, 422, "another length"),
        ({"query": {"vector": [0.0] * 10}}, 422, "block region"),
        ({"query": {"vector": [1e38] * 10}}, 422, "block region"),
        ({"query": {"vector": []}}, 422, "another length"),
        ({"query": {"id": IDS[0]}, "k": 0}, 422, "k"),
        ({"query": {"id": IDS[0]}, "k": "3"}, 422, "k"),
        ({"query": {"id": IDS[0]}, "target": "audio"}, 422, "target"),
        ({"query": {"id": IDS[0]}, "rerank": True}, 422, "cannot be re-ranked"),
        ({"query": {"id": IDS[0]}, "lambda": 1.5}, 422, "lambda"),
        ({"query": {"id": IDS[0]}, "deadline_ms": 0}, 422, "deadline_ms"),
        ({"query": {"id": IDS[0]}, "filter": {"price": ["1"]}}, 422, "filter column"),
        ({"query": {"id": IDS[0]}, "filter": {"labels": "red"}}, 422, "filter.labels"),
        ({"query": {"id": IDS[0]}, "nonsense": 1}, 422, "nonsense"),
    ],
)
def test_a_wrong_question_is_a_problem_that_names_the_field(
    http: TestClient, body: dict[str, object], status: int, title: str
) -> None:
    assert_problem(search(http, **body), status, title=title)


def test_broken_bodies_and_content_types_are_refused(http: TestClient) -> None:
    post = http.post
    json_type = {"content-type": "application/json"}
    assert_problem(post("/v1/search", content=b"{", headers=json_type), 422, title="invalid request")
    nan = b'{"query": {"vector": [NaN]}}'
    assert_problem(post("/v1/search", content=nan, headers=json_type), 422, title="invalid request")
    text = {"content-type": "text/plain"}
    assert_problem(post("/v1/search", content=b"{}", headers=text), 415, title="content type")
    torn = {"content-type": "multipart/form-data; boundary=x"}
    assert_problem(post("/v1/search", content=b"--x\r\nnonsense", headers=torn), 422, title="wrong parts")
    no_boundary = {"content-type": "multipart/form-data"}
    assert_problem(post("/v1/search", content=b"x", headers=no_boundary), 400, title="boundary")
    assert_problem(post("/v1/search", files={"picture": b"x"}), 422, title="wrong parts")
    both = {"request": json.dumps({"query": {"text": "caption 0 of item 0"}})}
    assert_problem(post("/v1/search", files={"image": jpeg("red")}, data=both), 422, title="one question")
    assert_problem(http.get("/v1/nowhere"), 404, title="no such path")
    assert_problem(http.get("/v1/search"), 405, title="method")
    assert_problem(http.get("/v1/items/nobody"), 404, title="no such id")
    assert_problem(http.get("/v1/items/..%2F..%2Fetc%2Fpasswd"), 404, title="no such id")


def test_openapi_is_whole_and_offline(http: TestClient) -> None:
    document = http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    refs = {ref.rpartition("/")[2] for ref in _refs(document)}
    assert refs <= set(schemas)
    assert {"SearchRequest", "SearchResponse", "Query", "Problem", "Item", "Indexes"} <= set(schemas)
    body = document["paths"]["/v1/search"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    assert http.get("/docs").status_code == 404


def test_indexes_and_health(http: TestClient) -> None:
    (index,) = http.get("/v1/indexes").json()["indexes"]
    assert index["blocks"] == BLOCKS
    assert index["counts"] == {"image": 12, "text": 24}
    assert index["recall_at_10"]["text->image"] == 1.0
    assert http.get("/healthz").json() == http.get("/readyz").json() == {"status": "ok"}


def test_the_page_is_offline_and_every_answer_carries_the_security_headers(http: TestClient) -> None:
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for path, (_, media_type) in PAGE_FILES.items():
        answer = http.get(path)
        assert answer.headers["content-type"] == media_type
        # A name, not an address: nobody fetches it.
        text = answer.text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert text and "http://" not in text and "https://" not in text
    assert "<script>" not in page.text
    assert "style=" not in page.text
    for answer in (page, http.get("/v1/nowhere"), http.get("/healthz"), search(http)):
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers[name] == value


def _refs(node: object) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(_refs(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(_refs(value) for value in node))
    return set()
