"""From raw shards to answers with a pretrained dual encoder and nothing trained: embed, index, search over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.stages.corpus import corpus_config, good_samples, jpeg, write_tar
from tests.stages.inline_executor import InlineExecutor
from tests.tiny_duals import write_clip
from zscmr_ray.config import Config
from zscmr_ray.errors import ConfigError, DataError, RefusedError
from zscmr_ray.manifest import require_manifest
from zscmr_ray.recipes import vary
from zscmr_ray.serving.app import build_app, open_service
from zscmr_ray.serving.releases import check_servable
from zscmr_ray.serving.routes import http_app
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.index import run_index
from zscmr_ray.stages.plane import on_ray

NUM_ITEMS = 12


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def indexed(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of shards, vectors and index: no pairs, no checkpoint. The default `embed.model`, as a service has it."""
    root = tmp_path_factory.mktemp("search")
    write_tar(root / "shards/a.tar", good_samples(0, NUM_ITEMS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_ray, "RayExecutor", InlineExecutor)
        run_embed(corpus_config(root, embed={"model": f"hf:{clip}"}))
    config = corpus_config(root)
    run_index(config)
    assert sorted(path.name for path in Path(config.data.run_uri).iterdir()) == ["embeddings", "index"]
    return config


@pytest.fixture(scope="module")
def http(indexed: Config) -> Iterator[TestClient]:
    service = open_service(indexed)
    with TestClient(http_app(service, indexed.serve, api_keys=()), raise_server_exceptions=False) as client:
        yield client
    service.close()


def search(http: TestClient, **request: Any) -> dict[str, Any]:
    answer = http.post("/v1/search", json=request)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_the_index_names_the_model_of_its_vectors(indexed: Config, clip: Path) -> None:
    info = require_manifest(stage_store(indexed, "index"), "index").info
    assert info["model"] == f"hf:{clip}"
    assert [block["name"] for block in info["blocks"]] == ["global"]


@pytest.mark.parametrize("target", ["text", "image"])
def test_a_picture_of_the_corpus_finds_itself_and_a_caption_its_own(http: TestClient, target: str) -> None:
    picture = base64.b64encode(jpeg(5)).decode()
    question = {"image_b64": picture} if target == "image" else {"text": "a picture of kind c number 5"}
    answer = search(http, query=question, target=target, k=3)
    best = answer["results"][0]
    assert best["id"] == ("a.tar#0005" if target == "image" else "a.tar#0005#0")
    assert best["score"] == pytest.approx(1.0, abs=5e-3)
    assert answer["label_weight"] == 0.0


def test_both_directions_across_modalities_answer(http: TestClient) -> None:
    texts = search(http, query={"image_b64": base64.b64encode(jpeg(3)).decode()}, target="text", k=4)
    images = search(http, query={"text": "two words"}, target="image", k=4)
    assert len(texts["results"]) == len(images["results"]) == 4
    by_id = search(http, query={"id": "a.tar#0001#1"}, target="image", k=4)
    assert [hit["id"] for hit in by_id["results"]] == [hit["id"] for hit in images["results"]]


def test_lambda_has_nothing_to_weigh(http: TestClient) -> None:
    request = {"query": {"text": "two words"}, "target": "image", "k": 1, "lambda": 0.5}
    answer = http.post("/v1/search", json=request)
    assert answer.status_code == 422 and "label" in answer.text


def test_another_model_is_refused_with_both_fingerprints(indexed: Config, tmp_path: Path) -> None:
    other = write_clip(tmp_path / "other", seed=7)
    with pytest.raises(RefusedError, match="built by another model") as caught:
        open_service(vary(indexed, recipe="fgan", embed={"model": f"hf:{other}"}))
    assert require_manifest(stage_store(indexed, "index"), "index").info["fingerprint"] in str(caught.value)


def test_what_cannot_be_served_is_said_before_anything_is_loaded(indexed: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such model"):
        check_servable(vary(indexed, recipe="fgan", embed={"model": str(tmp_path / "nowhere")}))
    with pytest.raises(DataError, match="index is not complete"):
        check_servable(vary(indexed, recipe="fgan", data={"run_uri": str(tmp_path)}))


def test_a_replica_elsewhere_gets_absolute_places(
    indexed: Config, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clip.parent)
    app = build_app(vary(indexed, recipe="fgan", embed={"model": f"hf:{clip.name}"}))
    bound = app._bound_deployment.init_args[0]
    assert bound["embed"]["model"] == f"hf:{clip}"
    assert build_app(indexed)._bound_deployment.init_args[0]["embed"]["model"] == "checkpoint"
