"""The second stage without a service: its scores are the model's own, from what the index kept in half precision."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.serving.imfa_run import imfa_run
from zscmr_ray.config import Config
from zscmr_ray.engine.vector_model import ModelPlace, find_model, load_model
from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.models.dual_encoder import DualEncoder
from zscmr_ray.retrieval.gallery import Gallery
from zscmr_ray.serving.encoder import ModelEncoder
from zscmr_ray.serving.reranker import Reranker, Shortlist
from zscmr_ray.stages import stage_store


def place_of(config: Config) -> ModelPlace:
    return find_model("checkpoint", own=stage_store(config, "train"))


def images_of(config: Config) -> Gallery:
    return Gallery(Path(config.data.run_uri) / "index/image")


def test_scores_are_those_of_the_pairs_from_pixels_in_the_order_of_the_ids(imfa_config: Config) -> None:
    images, texts = images_of(imfa_config), ["a picture of kind b", "two words"]
    reranker = Reranker(place_of(imfa_config), images)
    model, _ = load_model(place_of(imfa_config))
    assert isinstance(model, DualEncoder)
    ids = ("b.tar#0003", "a.tar#0007", "b.tar#0000")
    encoder = ModelEncoder(place_of(imfa_config), max_pixels=1_000_000)
    pixels = [encoder.decode(picture_of(imfa_config, item_id)) for item_id in ids]
    _, seen = model.encode_images(torch.from_numpy(np.stack(pixels)))
    _, said = model.encode_texts(texts)
    with torch.inference_mode():
        expected_NM = model.model.score_pairs(seen, said).numpy()
    found = reranker.rerank([Shortlist(text, ids) for text in texts])
    for column, scores in enumerate(found):
        np.testing.assert_allclose(scores, expected_NM[:, column], atol=2e-3)
    (alone,) = reranker.rerank([Shortlist(texts[1], ids[:1])])
    np.testing.assert_allclose(alone, found[1][:1], atol=1e-6)
    assert reranker.rerank([Shortlist("x", ())])[0].shape == (0,)


def test_another_model_and_an_index_without_regions_are_refused(imfa_config: Config, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="not the one that was meant"):
        Reranker(place_of(imfa_config), images_of(imfa_config), fingerprint="00" * 32)
    plain = imfa_run(tmp_path, regions=False)
    with pytest.raises(DataError, match=r"embed\.regions=true"):
        Reranker(place_of(plain), images_of(plain))


def picture_of(config: Config, item_id: str) -> bytes:
    shard, key = item_id.split("#")
    with tarfile.open(Path(config.data.input_uri) / shard) as tar:
        member = tar.extractfile(f"{key}.jpg")
        assert member is not None
        return member.read()
