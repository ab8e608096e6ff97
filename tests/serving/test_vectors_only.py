"""An imported index of another program's vectors: vectors and ids can be asked for, texts and pictures are refused."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.clip_layout import write_foreign
from tests.embeddings_run import jpeg, run_config
from tests.tiny_duals import write_clip
from zscmr_ray.config import Config
from zscmr_ray.engine.vector_model import find_model, load_model
from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.recipes import vary
from zscmr_ray.serving.app import open_service
from zscmr_ray.serving.releases import check_servable
from zscmr_ray.serving.routes import http_app
from zscmr_ray.stages.convert import import_clip_retrieval
from zscmr_ray.stages.index import run_index
from zscmr_ray.storage import Store

DIMENSION = 6


@pytest.fixture(scope="module")
def foreign_run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("foreign")
    vectors = np.random.default_rng(0).standard_normal((2, 9, DIMENSION)).astype(np.float32)
    write_foreign(folder / "clip", [(vectors[0], vectors[1])])
    import_clip_retrieval(Store(folder / "clip"), Store(folder / "embeddings"), model_name="ViT-B/32")
    config = run_config(folder)
    run_index(config)
    return config


@pytest.fixture(scope="module")
def http(foreign_run: Config) -> Iterator[TestClient]:
    assert check_servable(foreign_run)[1] is None
    service = open_service(foreign_run)
    with TestClient(
        http_app(service, foreign_run.serve, api_keys=()), raise_server_exceptions=False
    ) as client:
        yield client
    service.close()


def test_ids_and_vectors_are_answered(http: TestClient) -> None:
    found = http.post("/v1/search", json={"query": {"id": "00004"}, "target": "image", "k": 3})
    assert found.status_code == 200, found.text
    assert found.json()["results"][0]["id"] == "00004"
    assert found.json()["results"][0]["caption"] == "caption 4"
    vector = [1.0] + [0.0] * (DIMENSION - 1)
    found = http.post("/v1/search", json={"query": {"vector": vector}, "target": "text", "k": 2})
    assert found.status_code == 200 and len(found.json()["results"]) == 2


@pytest.mark.parametrize("query", [{"text": "a cat"}, {"image_b64": base64.b64encode(jpeg("red")).decode()}])
def test_texts_and_pictures_are_refused_and_the_remedy_said(http: TestClient, query: dict[str, str]) -> None:
    answer = http.post("/v1/search", json={"query": query, "target": "image"})
    assert answer.status_code == 422
    problem = answer.json()
    assert "cannot be asked with a" in problem["title"]
    assert "ViT-B/32" in problem["got"] and "query.id" in problem["expected"] and "hf:" in problem["remedy"]


def test_a_model_named_for_queries_must_be_the_one(foreign_run: Config, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip")
    with pytest.raises(RefusedError, match="another model"):
        open_service(vary(foreign_run, recipe="fgan", embed={"model": f"hf:{clip}"}))


def test_vectors_declared_to_be_of_a_model_we_can_load_take_text_queries(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "model")
    place = find_model(f"hf:{clip}", own=Store(tmp_path))
    model, facts = load_model(place)
    texts = [f"caption {n}" for n in range(5)]
    vectors = model.encode_texts(texts)[0].float().numpy()
    write_foreign(tmp_path / "clip", [(vectors, 3 * vectors)])
    source, config = Store(tmp_path / "clip"), run_config(tmp_path / "run")
    import_clip_retrieval(source, Store(tmp_path / "run/embeddings"), model_name=f"hf:{clip}")
    assert run_index(config).info["fingerprint"] == facts.fingerprint
    service = open_service(config)
    with TestClient(http_app(service, config.serve, api_keys=())) as client:
        query = {"query": {"text": "caption 3"}, "target": "text", "k": 1}
        answer = client.post("/v1/search", json=query)
    service.close()
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["score"] == pytest.approx(1.0, abs=5e-3)
    write_foreign(tmp_path / "short", [(vectors[:, :-1], vectors[:, :-1])])
    with pytest.raises(DataError, match="not of the model that is named"):
        import_clip_retrieval(Store(tmp_path / "short"), Store(tmp_path / "out"), model_name=f"hf:{clip}")
