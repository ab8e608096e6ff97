"""The dual encoder: pixels and cached features give the same vectors, deterministic, without gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zscmr_ray.models.backbones import load_image_backbone, load_text_backbone
from zscmr_ray.models.base import AlignmentModel, SideOutput, VectorBlock
from zscmr_ray.models.dual_encoder import DualEncoder


class MeanModel(AlignmentModel):
    """The mean of the true tokens as a region block, under dropout in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(32, 8)
        self.dropout = nn.Dropout(0.5)

    @property
    def blocks(self) -> tuple[VectorBlock, ...]:
        return (VectorBlock("region", 0, 8),)

    def encode_image(self, regions_BRD: Tensor, *, noise: object = None) -> SideOutput:
        vectors_BD = self.dropout(self.project(regions_BRD.mean(1)))
        return SideOutput(region_BD=nn.functional.normalize(vectors_BD, dim=1))

    def encode_text(self, tokens_BLD: Tensor, lengths_B: Tensor, *, noise: object = None) -> SideOutput:
        return self.encode_image(tokens_BLD.sum(1, keepdim=True) / lengths_B[:, None, None])

    def loss(self, *_args: object, **_kwargs: object) -> dict[str, Tensor]:
        raise NotImplementedError

    def architecture(self) -> dict[str, object]:
        return {"method": "mean"}


@pytest.fixture
def encoder() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(load_image_backbone("tiny"), load_text_backbone("tiny"), MeanModel(), region_grid=4)


def pixels(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (rows, 224, 224, 3), dtype=torch.uint8, generator=generator)


def test_pixels_and_cached_features_give_identical_vectors(encoder: DualEncoder) -> None:
    batch = pixels(3)
    vectors, output = encoder.encode_images(batch)
    assert encoder.image_backbone is not None and encoder.text_backbone is not None
    cached = encoder.image_backbone(batch, region_grid=4).regions_BRD.half()
    again, _ = encoder.embed_regions(cached)
    assert vectors.shape == (3, 8) and torch.equal(vectors, again) and output.region_BD is not None
    captions = ["a red dog", "two men"]
    features = encoder.text_backbone(captions)
    words, _ = encoder.encode_texts(captions)
    assert torch.equal(words, encoder.embed_tokens(features.tokens_BLD.half(), features.lengths_B)[0])


def test_vectors_are_deterministic_whatever_mode_is_asked_for(encoder: DualEncoder) -> None:
    nn.Sequential(encoder).train()
    assert not any(part.training for part in encoder.modules())
    first, second = (encoder.encode_images(pixels(2))[0] for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad


def test_the_model_keeps_its_gradients_for_whoever_trains_it(encoder: DualEncoder) -> None:
    assert all(parameter.requires_grad for parameter in encoder.model.parameters())


def test_an_absent_backbone_is_our_own_slip(encoder: DualEncoder) -> None:
    half = DualEncoder(None, encoder.text_backbone, encoder.model, region_grid=4)
    assert half.encode_texts(["a"])[0].shape == (1, 8)
    with pytest.raises(AssertionError, match="without an image backbone"):
        half.encode_images(pixels(1))


def test_defect_08_only_the_model_would_be_saved(encoder: DualEncoder) -> None:
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"model"}
