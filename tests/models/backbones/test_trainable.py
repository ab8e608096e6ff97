"""Training the last blocks of a backbone: what is trained, what stays, and that it begins as the frozen network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.models.backbones.test_huggingface import models  # noqa: F401  a fixture
from zscmr_ray.errors import ConfigError
from zscmr_ray.models.backbones import load_image_backbone, load_text_backbone
from zscmr_ray.models.backbones.trainable import Blocks, TrainedImage, TrainedText, recompute_blocks, unfreeze

CAPTIONS = ["a dog runs over grass", "zebra", "two men in red shirts"]


def pictures(size_px: int, count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size_px, size_px, 3), generator=generator, dtype=torch.uint8)


def trained_image(name: str, blocks: Blocks) -> TrainedImage:
    backbone = load_image_backbone(name)
    return TrainedImage(backbone, blocks=blocks, region_grid=backbone.native_grid).train()


@pytest.mark.parametrize(
    "name, blocks, entry, tensors",
    [
        ("tiny", 1, 1, 1),
        ("tiny", "all", 0, 2),
        # The last bottleneck (3 kernels and biases) and the convolution after it.
        ("efficientnet-lite0", 1, 16, 8),
        # Its states are larger than the pixels from the third bottleneck down: training enters at the pixels.
        ("efficientnet-lite0", 16, 0, 96),
        ("efficientnet-lite0", "all", 0, 98),
    ],
)
def test_packaged_images_begin_where_they_were_and_every_tensor_learns(
    name: str, blocks: Blocks, entry: int, tensors: int
) -> None:
    frozen, trained = load_image_backbone(name), trained_image(name, blocks)
    pixels = pictures(frozen.spec.size_px)
    fed = trained.feed(pixels)
    regions = trained(fed)
    expected = frozen(pixels, region_grid=frozen.native_grid).regions_BRD
    assert trained.entry == entry
    torch.testing.assert_close(regions, expected, rtol=1e-5, atol=1e-5)
    regions.square().mean().backward()
    parameters = list(trained.parameters())
    assert len(parameters) == len(trained.state_dict()) == tensors
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in parameters if parameter.grad is not None)
    assert all(parameter.grad is not None for parameter in parameters)
    # A row's states are the same bits beside any others: kept or made again, training goes the same way.
    assert torch.equal(trained.feed(pixels[4:5]), fed[4:5])


@pytest.mark.parametrize("name, blocks, tensors", [("tiny", 1, 1), ("minilm", 2, 24), ("minilm", "all", 76)])
def test_packaged_texts_begin_where_they_were_and_every_tensor_learns(
    name: str, blocks: Blocks, tensors: int
) -> None:
    trained = TrainedText(load_text_backbone(name), blocks=blocks)
    batch = trained.backbone.tokenize(CAPTIONS)
    tokens = trained(batch.ids_BL, batch.lengths_B)
    expected = load_text_backbone(name)(CAPTIONS).tokens_BLD
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
    tokens.square().mean().backward()
    parameters = list(trained.parameters())
    assert len(parameters) == tensors
    assert all(parameter.grad is not None for parameter in parameters)


def test_strided_kernels_keep_their_shape() -> None:
    trained = trained_image("efficientnet-lite0", 5)
    kernels = [value for value in trained.parameters() if value.dim() == 4 and value.shape[1] == 1]
    assert {value.shape[-1] for value in kernels} == {3, 5}


@pytest.mark.parametrize("kind", ["vit", "resnet", "convnext", "dinov2", "clip", "swin"])
@pytest.mark.parametrize("blocks", [1, "all"])
def test_hugging_face_images(models: Path, kind: str, blocks: Blocks) -> None:  # noqa: F811
    frozen, trained = load_image_backbone(f"hf:{models / kind}"), trained_image(f"hf:{models / kind}", blocks)
    pixels = pictures(frozen.spec.size_px, 2)
    before = {name: value.clone() for name, value in trained.backbone.named_buffers()}
    regions = trained(trained.feed(pixels))
    torch.testing.assert_close(regions, frozen(pixels, region_grid=frozen.native_grid).regions_BRD)
    regions.square().mean().backward()
    trainable = dict(trained.backbone.named_parameters())
    assert trainable.keys() == trained.backbone.state_dict().keys()
    assert all(parameter.grad is not None for parameter in trainable.values())
    # Heads and poolers that no region depends on stay out; BatchNorm keeps its statistics.
    assert not [name for name in trainable if "pooler" in name or name.startswith("model.classifier")]
    assert all(torch.equal(value, before[name]) for name, value in trained.backbone.named_buffers())
    assert not any(module.training for module in trained.backbone.modules())


@pytest.mark.parametrize("kind", ["bert", "clip", "siglip"])
def test_hugging_face_texts(models: Path, kind: str) -> None:  # noqa: F811
    name = f"hf:{models / kind}"
    trained = TrainedText(load_text_backbone(name, max_tokens=8), blocks=1)
    batch = trained.backbone.tokenize(CAPTIONS)
    tokens = trained(batch.ids_BL, batch.lengths_B)
    expected = load_text_backbone(name, max_tokens=8)(CAPTIONS).tokens_BLD
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
    tokens.square().mean().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())
    assert not [name for name, _ in trained.named_parameters() if "embeddings" in name]


def gradients(module: nn.Module, output: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output.square().mean(), list(module.parameters())))


def test_recomputed_activations_give_the_same_gradients(models: Path) -> None:  # noqa: F811
    for name, blocks in (("efficientnet-lite0", 2), (f"hf:{models / 'vit'}", 2)):
        plain, recomputing = trained_image(name, blocks), trained_image(name, blocks)
        recompute_blocks(recomputing.backbone)
        fed = plain.feed(pictures(plain.backbone.spec.size_px, 2))
        pairs = zip(gradients(plain, plain(fed)), gradients(recomputing, recomputing(fed)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("blocks", [3, -1])
def test_blocks_a_backbone_has_not_are_refused(blocks: int) -> None:
    with pytest.raises(ConfigError, match='1 to 2, or "all"'):
        unfreeze(load_image_backbone("tiny"), blocks=blocks)


def test_a_table_of_word_vectors_is_refused() -> None:
    with pytest.raises(ConfigError, match="this one has none"):
        unfreeze(load_text_backbone("static:minilm"), blocks="all")
