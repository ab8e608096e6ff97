"""Hugging Face backbones on small random models saved to disk: no network, every supported kind, clear refusals."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.models.backbones import ImageSpec, load_image_backbone, load_text_backbone

WORDS = ["a", "dog", "cat", "runs", "over", "grass", "two", "men", "in", "red", "shirts", "zebra", ".", "##s"]
CAPTIONS = ["a dog runs over grass", "zebra", "", "two men in red shirts runs"]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a local model opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import transformers as hf

    root = tmp_path_factory.mktemp("models")
    hf.logging.set_verbosity_error()
    torch.manual_seed(0)
    crop = {
        "crop_size": {"height": 64, "width": 64},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
    }
    square = hf.ViTImageProcessorPil(size={"height": 64, "width": 64})
    convnext = hf.ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875)
    stages: dict[str, Any] = {"hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1]}
    clip = hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)
    siglip = hf.SiglipConfig(text_config=TEXT, vision_config=VISION)
    bert = {**TEXT, "num_hidden_layers": 1}
    dino = {k: v for k, v in VISION.items() if k != "intermediate_size"}
    made: dict[str, tuple[Any, Any]] = {
        "clip": (hf.CLIPModel(clip), hf.CLIPImageProcessorPil(size={"shortest_edge": 80}, **crop)),
        "clip_vision": (hf.CLIPVisionModel(clip.vision_config), square),
        "clip_classifier": (hf.CLIPForImageClassification(clip), square),
        "siglip": (hf.SiglipModel(siglip), hf.SiglipImageProcessorPil(size={"height": 64, "width": 64})),
        "vit": (hf.ViTForImageClassification(hf.ViTConfig(**VISION, num_labels=5)), square),
        "dinov2": (hf.Dinov2Model(hf.Dinov2Config(**dino)), square),
        "dinov2_registers": (hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**dino)), square),
        "convnext": (
            hf.ConvNextForImageClassification(hf.ConvNextConfig(**stages, num_labels=4)),
            convnext,
        ),
        "resnet": (
            hf.ResNetForImageClassification(hf.ResNetConfig(**stages, embedding_size=8, layer_type="basic")),
            convnext,
        ),
        "swin": (
            hf.SwinModel(
                hf.SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
            ),
            square,
        ),
        "bert": (hf.BertModel(hf.BertConfig(**bert)), None),
        "roberta": (hf.RobertaModel(hf.RobertaConfig(**{**bert, "pad_token_id": 0})), None),
    }
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for name, (model, processor) in made.items():
        folder = root / name
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        vocabulary = {word: index for index, word in enumerate(marks + WORDS)}
        hf.BertTokenizer(vocab=vocabulary, model_max_length=16).save_pretrained(folder)
    yield root


def pixels(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (rows, 64, 64, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("name", "channels", "grid", "classes"),
    [
        ("clip", 32, 4, None),
        ("clip_vision", 32, 4, None),
        ("clip_classifier", 32, 4, 2),
        ("siglip", 32, 4, None),
        ("vit", 32, 4, 5),
        ("dinov2", 32, 4, None),
        ("dinov2_registers", 32, 4, None),
        ("convnext", 32, 2, 4),
        ("resnet", 32, 2, 2),
        ("swin", 16, 8, None),
    ],
)
def test_image_models(models: Path, name: str, channels: int, grid: int, classes: int | None) -> None:
    backbone = load_image_backbone(f"hf:{models / name}")
    assert (backbone.num_channels, backbone.native_grid, backbone.num_classes) == (channels, grid, classes)
    torch.nn.Sequential(backbone).train()
    batch = pixels(3)
    together = backbone(batch, region_grid=2)
    alone = backbone(batch[1:2], region_grid=2)
    assert together.regions_BRD.shape == (3, 4, channels)
    torch.testing.assert_close(together.regions_BRD[1:2], alone.regions_BRD, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together.regions_BRD[0], together.regions_BRD[1], atol=1e-4)
    if classes is None:
        assert together.logits_BC is None and backbone.class_names is None
    else:
        assert together.logits_BC is not None and together.logits_BC.shape == (3, classes)
        assert backbone.class_names == tuple(f"LABEL_{index}" for index in range(classes))


@pytest.mark.parametrize("name", ["clip", "vit", "resnet"])
def test_regions_and_logits_are_the_models_own(models: Path, name: str) -> None:
    from transformers import AutoModelForImageClassification, CLIPVisionModel

    backbone = load_image_backbone(f"hf:{models / name}")
    batch = pixels(2)
    mean, std = torch.tensor(backbone.spec.mean), torch.tensor(backbone.spec.std)
    images = ((batch.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    kind = CLIPVisionModel if name == "clip" else AutoModelForImageClassification
    model = kind.from_pretrained(models / name).eval()
    with torch.no_grad():
        states = (model if name == "clip" else model.base_model)(pixel_values=images).last_hidden_state
        want = states[:, 1:] if states.dim() == 3 else states.flatten(2).transpose(1, 2)
        got = backbone(batch, region_grid=backbone.native_grid)
        torch.testing.assert_close(got.regions_BRD, want, rtol=1e-4, atol=1e-4)
        if name != "clip":
            torch.testing.assert_close(got.logits_BC, model(pixel_values=images).logits, rtol=1e-4, atol=1e-4)


def test_pixel_specifications_follow_the_processors(models: Path) -> None:
    specs = {name: load_image_backbone(f"hf:{models / name}").spec for name in ("clip", "vit", "convnext")}
    assert specs["clip"] == ImageSpec(64, 0.8, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert specs["vit"] == ImageSpec(64, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (specs["convnext"].size_px, specs["convnext"].crop_fraction) == (64, 0.875)


@pytest.mark.parametrize("name", ["bert", "roberta", "clip", "siglip"])
def test_text_models(models: Path, name: str) -> None:
    backbone = load_text_backbone(f"hf:{models / name}", max_tokens=12)
    together = backbone(CAPTIONS)
    assert together.tokens_BLD.shape[2] == 24
    assert together.lengths_B.tolist() == [7, 3, 2, 8]
    for row, caption in enumerate(CAPTIONS):
        alone = backbone([caption]).tokens_BLD[0]
        torch.testing.assert_close(together.tokens_BLD[row, : len(alone)], alone, rtol=1e-4, atol=1e-5)
        assert not together.tokens_BLD[row, len(alone) :].any()
    torch.testing.assert_close(backbone.sentence_BD(together).norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("name", ["bert", "roberta", "clip", "siglip"])
def test_a_masked_padded_pass_equals_the_exact_one(models: Path, name: str) -> None:
    backbone = load_text_backbone(f"hf:{models / name}", max_tokens=12)
    batch = backbone.tokenize(CAPTIONS)
    mask_BL = torch.arange(batch.ids_BL.shape[1]) < batch.lengths_B[:, None]
    padded = backbone._encode(batch.ids_BL, mask_BL) * mask_BL[..., None]
    torch.testing.assert_close(backbone(CAPTIONS).tokens_BLD, padded, rtol=1e-4, atol=1e-5)


def test_siglip_sees_the_full_width_it_was_trained_with(models: Path) -> None:
    from transformers import SiglipModel

    backbone = load_text_backbone(f"hf:{models / 'siglip'}", max_tokens=12)
    batch = backbone.tokenize(["a dog"])
    with torch.no_grad():
        full = SiglipModel.from_pretrained(models / "siglip").text_model.eval()
        want = full(input_ids=F.pad(batch.ids_BL, (0, 12))).last_hidden_state[:, :4]
    torch.testing.assert_close(backbone(["a dog"]).tokens_BLD, want, rtol=1e-4, atol=1e-5)


def test_hashes_follow_weights_and_vocabulary(models: Path, tmp_path: Path) -> None:
    names = ("clip", "siglip", "bert")
    hashes = [load_text_backbone(f"hf:{models / name}", max_tokens=8).weights_sha256 for name in names]
    assert len(set(hashes)) == 3
    moved = shutil.copytree(models / "bert", tmp_path / "moved")
    assert load_text_backbone(f"hf:{moved}", max_tokens=8).weights_sha256 == hashes[2]
    tokenizer = moved / "tokenizer.json"
    tokenizer.write_text(
        tokenizer.read_text(encoding="utf-8").replace('"zebra"', '"horse"'), encoding="utf-8"
    )
    assert load_text_backbone(f"hf:{moved}", max_tokens=8).weights_sha256 != hashes[2]


@pytest.mark.parametrize("max_tokens", [2, 17])
def test_max_tokens_out_of_range(models: Path, max_tokens: int) -> None:
    with pytest.raises(ConfigError, match="expected: 3 to 16"):
        load_text_backbone(f"hf:{models / 'bert'}", max_tokens=max_tokens)


def test_missing_folders_and_files_are_clear(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load_image_backbone(f"hf:{tmp_path / 'nowhere'}")
    with pytest.raises(ConfigError, match="cannot load the image backbone"):
        load_image_backbone(f"hf:{tmp_path}")
    bare = shutil.copytree(models / "vit", tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="cannot load the image backbone"):
        load_image_backbone(f"hf:{bare}")
    pickled = shutil.copytree(models / "bert", tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        load_text_backbone(f"hf:{pickled}", max_tokens=8)


def test_an_unknown_type_and_a_model_without_regions_are_refused(models: Path, tmp_path: Path) -> None:
    unknown = shutil.copytree(models / "vit", tmp_path / "unknown")
    config = unknown / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "no-such-type"}))
    with pytest.raises(ConfigError, match="no-such-type"):
        load_image_backbone(f"hf:{unknown}")
    with pytest.raises(ConfigError, match="cannot load the image backbone"):
        load_image_backbone(f"hf:{models / 'bert'}")


def test_missing_weights_are_not_replaced_by_random_ones(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    cut = shutil.copytree(models / "vit", tmp_path / "cut")
    weights = load_file(cut / "model.safetensors")
    weights.pop("classifier.weight")
    save_file(weights, cut / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks weights.*classifier\.weight"):
        load_image_backbone(f"hf:{cut}")


@pytest.mark.parametrize("name", ["bert", "clip", "siglip"])
def test_static_tokens_are_the_input_embeddings_without_marks(models: Path, name: str) -> None:
    contextual = load_text_backbone(f"hf:{models / name}", max_tokens=12)
    static = load_text_backbone(f"static:hf:{models / name}", max_tokens=4)
    found = static(["a dog runs over grass", ""])
    assert found.lengths_B.tolist() == [4, 1]
    ids = contextual.tokenize(["a dog runs over"]).ids_BL[0, 1:-1]
    table = contextual.model.get_input_embeddings().weight
    torch.testing.assert_close(found.tokens_BLD[0], table[ids])
