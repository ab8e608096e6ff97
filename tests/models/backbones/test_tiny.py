"""The random backbones: the same in every process, quick, and contract-keeping."""

from __future__ import annotations

import pytest
import torch

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.backbones import load_image_backbone, load_text_backbone

IMAGE_SHA256 = "a1bc3556325631bc997d8388851a8cf718e35343913210e191ea763813dcbca4"
TEXT_SHA256 = "4742534273e6bd98dbfb6b3ffb0d7cdabcef89251086449319275b61caafb749"


def test_the_weights_are_pinned() -> None:
    assert load_image_backbone("tiny").weights_sha256 == IMAGE_SHA256
    assert load_text_backbone("tiny").weights_sha256 == TEXT_SHA256


def test_image_shapes_and_names() -> None:
    backbone = load_image_backbone("tiny")
    features = backbone(torch.randint(0, 256, (3, 224, 224, 3), dtype=torch.uint8), region_grid=4)
    assert features.regions_BRD.shape == (3, 16, 32)
    assert features.logits_BC is not None and features.logits_BC.shape == (3, 16)
    assert backbone.class_names is not None and backbone.class_names[15] == "tiny-15"
    assert features.regions_BRD.std() > 0


def test_different_images_differ() -> None:
    backbone = load_image_backbone("tiny")
    black, white = torch.zeros(1, 224, 224, 3, dtype=torch.uint8), torch.full((1, 224, 224, 3), 255).byte()
    assert not torch.allclose(
        backbone(black, region_grid=7).regions_BRD, backbone(white, region_grid=7).regions_BRD
    )


def test_words_have_fixed_vectors_whatever_stands_around_them() -> None:
    backbone = load_text_backbone("tiny", max_tokens=4)
    features = backbone(["a red dog", "Red!", "", "one two three four five"])
    assert features.lengths_B.tolist() == [3, 1, 1, 4]
    assert torch.equal(features.tokens_BLD[0, 1], features.tokens_BLD[1, 0])
    assert not torch.equal(features.tokens_BLD[0, 1], features.tokens_BLD[0, 2])


def test_tokens_do_not_depend_on_the_process() -> None:
    # Python's own hash() would give other numbers in every process.
    assert load_text_backbone("tiny").tokenize(["Zebra crossing"]).ids_BL.tolist() == [[2167, 7647]]


def test_at_least_one_token() -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        load_text_backbone("tiny", max_tokens=0)
