"""`/v1/embeddings`: OpenAI's shape, the vectors that embed stores, and what is refused."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from tests.serving.test_reranker import picture_of
from zscmr_ray.config import Config

F16_STEP = 1e-3


def embeddings(http: TestClient, given: Any, **more: Any) -> Any:
    return http.post("/v1/embeddings", json={"input": given, **more})


def data_uri(data: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def stored(config: Config, side: str) -> dict[str, dict[str, Any]]:
    folder = Path(config.data.run_uri) / "embeddings" / side
    return {row["id"]: row for part in folder.glob("part-*") for row in pq.read_table(part).to_pylist()}


def test_vectors_are_those_that_embed_stores_for_texts_and_pictures(
    imfa_config: Config, imfa_http: TestClient
) -> None:
    texts, images = stored(imfa_config, "text"), stored(imfa_config, "image")
    captions = [texts[name] for name in ("a.tar#0002#0", "a.tar#0002#1", "b.tar#0005#2")]
    names = ["b.tar#0007", "a.tar#0001"]
    given = [row["caption"] for row in captions] + [data_uri(picture_of(imfa_config, name)) for name in names]
    answer = embeddings(imfa_http, given)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["object"], found["model"]) == (
        "list",
        imfa_http.get("/v1/indexes").json()["indexes"][0]["model_fingerprint"],
    )
    assert [row["index"] for row in found["data"]] == [0, 1, 2, 3, 4]
    assert {row["object"] for row in found["data"]} == {"embedding"}
    words = sum(len(row["caption"].split()) for row in captions)
    assert found["usage"] == {"prompt_tokens": words, "total_tokens": words}
    expected = [row["vector"] for row in captions] + [images[name]["vector"] for name in names]
    got_ND = np.array([row["embedding"] for row in found["data"]])
    np.testing.assert_allclose(got_ND, np.array(expected, np.float64), atol=F16_STEP)
    # Half precision, as stored: nothing is lost by keeping them as f16.
    np.testing.assert_array_equal(got_ND, got_ND.astype(np.float16))
    # A vector is a question: its own caption comes first.
    query = {"vector": found["data"][0]["embedding"]}
    best = imfa_http.post("/v1/search", json={"query": query, "target": "text", "k": 1}).json()["results"][0]
    assert best["caption"] == captions[0]["caption"]


def test_base64_is_little_endian_float32_and_one_text_needs_no_list(imfa_http: TestClient) -> None:
    (plain,) = embeddings(imfa_http, "two words").json()["data"]
    (packed,) = embeddings(imfa_http, "two words", encoding_format="base64").json()["data"]
    assert np.frombuffer(base64.b64decode(packed["embedding"]), "<f4").tolist() == plain["embedding"]
    whole = embeddings(imfa_http, "  two\twords ").json()["data"][0]
    assert whole["embedding"] == plain["embedding"]


def test_the_model_is_an_index_or_a_fingerprint(imfa_http: TestClient) -> None:
    fingerprint = imfa_http.get("/v1/indexes").json()["indexes"][0]["model_fingerprint"]
    for model in ("default", fingerprint, fingerprint[:12]):
        assert embeddings(imfa_http, "x", model=model, dimensions=16, user="u").status_code == 200
    missing = embeddings(imfa_http, "x", model="text-embedding-3-small")
    assert missing.status_code == 404 and "default" in missing.json()["expected"]


@pytest.mark.parametrize(
    ("given", "more", "named"),
    [
        ("http://example.org/x.jpg", {}, "nothing is fetched"),
        (["a", " https://example.org "], {}, "input 1 is an address"),
        ("file:///etc/passwd", {}, "nothing is fetched"),
        ("s3://bucket/key", {}, "nothing is fetched"),
        ("data:text/html;base64,PGI+", {}, "another data URI"),
        ("data:image/png,abc", {}, "another data URI"),
        ("data:image/png;base64,!!!", {}, "not base64"),
        (["a", data_uri(b"<html>")], {}, "input 1"),
        (["a", " \n "], {}, "input 1"),
        ("", {}, "input 0"),
        ([], {}, "input"),
        (["a"] * 257, {}, "too many inputs"),
        ("a" * 4097, {}, "too long"),
        ([["a"]], {}, "input"),
        ([1, 2], {}, "input"),
        ("a", {"dimensions": 8}, "not cut"),
        ("a", {"encoding_format": "int8"}, "encoding_format"),
        ("a", {"nonsense": 1}, "nonsense"),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    imfa_http: TestClient, given: Any, more: dict[str, Any], named: str
) -> None:
    answer = embeddings(imfa_http, given, **more)
    assert answer.status_code == 422, answer.text
    assert named in answer.text


def test_other_content_types_and_words_that_only_look_like_addresses(imfa_http: TestClient) -> None:
    answer = imfa_http.post("/v1/embeddings", content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    for text in ("see http://example.org for more", "data: the new oil", "C://drive"):
        assert embeddings(imfa_http, text).status_code == 200, text
    assert embeddings(imfa_http, ["a b"] * 256).status_code == 200
