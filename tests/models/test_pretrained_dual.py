"""Pretrained dual encoders on tiny random models: the library's own vectors, from files alone, clear refusals."""

from __future__ import annotations

import io
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.stages.corpus import jpeg
from tests.tiny_duals import DIM, MAX_TOKENS, SIZE_PX, write_clip, write_siglip
from zscmr_ray.data.decode import decode_image
from zscmr_ray.errors import ConfigError
from zscmr_ray.models.backbones.frozen import run_all_in
from zscmr_ray.models.pretrained_dual import PretrainedDualEncoder, load_pretrained_dual

CAPTIONS = [
    "a red square",
    "dog",
    "",
    "a photo of a blue cat . a photo of two dog s and much more than fits in",
]
KINDS = ("clip", "siglip")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a local model opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("duals")
    return {"clip": write_clip(root / "clip"), "siglip": write_siglip(root / "siglip")}


@pytest.fixture(scope="module")
def duals(folders: dict[str, Path]) -> dict[str, PretrainedDualEncoder]:
    return {kind: load_pretrained_dual(str(folder)) for kind, folder in folders.items()}


def pixels_of(encoder: PretrainedDualEncoder, data: bytes) -> torch.Tensor:
    spec = encoder.image_backbone.spec
    decoded = decode_image(
        data,
        size_px=spec.size_px,
        crop_fraction=spec.crop_fraction,
        interpolation=spec.interpolation,
        fit=spec.fit,
        max_pixels=10**6,
        thumbnail_px=None,
    )
    return torch.from_numpy(decoded.pixels_HW3.copy())[None]


def library(folder: Path) -> tuple[Any, Any, Any]:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    return (
        AutoModel.from_pretrained(folder).eval(),
        AutoImageProcessor.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )


def unit(found: Any) -> np.ndarray:
    vectors = found.pooler_output
    return (vectors / vectors.norm(dim=1, keepdim=True)).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_get_the_librarys_vectors(
    duals: dict[str, PretrainedDualEncoder], folders: dict[str, Path], kind: str
) -> None:
    """Processor, model and normalisation of the library against ours, on pictures that are not square."""
    model, processor, _ = library(folders[kind])
    for seed, size in enumerate([(90, 50), (50, 90), (64, 64)]):
        data = jpeg(seed, width=size[0], height=size[1])
        inputs = processor(Image.open(io.BytesIO(data)), return_tensors="pt")
        with torch.no_grad():
            want = unit(model.get_image_features(**inputs))
        got, side = duals[kind].encode_images(pixels_of(duals[kind], data))
        # A resized box and a cropped resize differ by a level of 255 here and there.
        assert got.shape[1] == duals[kind].blocks[0].stop
        np.testing.assert_allclose(got.numpy(), want, atol=0.02)
        assert side.weights_BR is None


@pytest.mark.parametrize("kind", KINDS)
def test_texts_get_the_librarys_vectors(
    duals: dict[str, PretrainedDualEncoder], folders: dict[str, Path], kind: str
) -> None:
    model, _, tokenizer = library(folders[kind])
    padding = "max_length" if kind == "siglip" else True
    inputs = tokenizer(CAPTIONS, padding=padding, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    mask = {} if kind == "siglip" else {"attention_mask": inputs["attention_mask"]}
    with torch.no_grad():
        want = unit(model.get_text_features(input_ids=inputs["input_ids"], **mask))
    got = duals[kind].encode_texts(CAPTIONS)[0].numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(got[0] - got[1]).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_does_not_depend_on_its_neighbours(
    duals: dict[str, PretrainedDualEncoder], kind: str
) -> None:
    together = duals[kind].encode_texts(CAPTIONS)[0]
    for row, caption in enumerate(CAPTIONS):
        alone = duals[kind].encode_texts([caption])[0]
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-6)
    assert duals[kind].encode_texts([])[0].shape == (0, duals[kind].blocks[0].stop)


def test_a_padded_pass_equals_the_exact_one(duals: dict[str, PretrainedDualEncoder]) -> None:
    """What a GPU does with a batch: padded to its longest row, and masked."""
    for encoder in duals.values():
        text = encoder.text_backbone
        batch = text.tokenize(CAPTIONS)
        mask_BL = torch.arange(batch.ids_BL.shape[1]) < batch.lengths_B[:, None]
        with torch.inference_mode():
            padded = text._pool(batch.ids_BL, mask_BL)
        torch.testing.assert_close(text.pooled_BD(CAPTIONS), padded, rtol=1e-5, atol=1e-5)


def test_vectors_are_one_unit_block_and_deterministic(duals: dict[str, PretrainedDualEncoder]) -> None:
    for encoder in duals.values():
        torch.nn.Sequential(encoder).train()
        pixels = torch.randint(0, 256, (3, SIZE_PX, SIZE_PX, 3), dtype=torch.uint8)
        first, again = (encoder.encode_images(pixels)[0] for _ in range(2))
        assert torch.equal(first, again) and not first.requires_grad
        torch.testing.assert_close(first.norm(dim=1), torch.ones(3))
        assert [block.name for block in encoder.blocks] == ["global"]
    assert duals["clip"].blocks[0].stop == DIM


def test_the_processor_says_how_pictures_are_cut(duals: dict[str, PretrainedDualEncoder]) -> None:
    clip, siglip = (duals[kind].image_backbone.spec for kind in KINDS)
    assert (clip.size_px, clip.crop_fraction, clip.fit, clip.mean) == (32, 0.8, "crop", (0.4, 0.5, 0.6))
    assert (siglip.size_px, siglip.crop_fraction, siglip.fit) == (32, 1.0, "squash")


def test_the_fingerprint_follows_contents_and_not_the_place(folders: dict[str, Path], tmp_path: Path) -> None:
    first = load_pretrained_dual(str(folders["clip"])).fingerprint
    moved = shutil.copytree(folders["clip"], tmp_path / "moved")
    assert load_pretrained_dual(str(moved)).fingerprint == first and len(first) == 64
    other = load_pretrained_dual(str(write_clip(tmp_path / "other", seed=1))).fingerprint
    processor = moved / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace("0.6", "0.7"))
    tokenizer = load_pretrained_dual(str(moved)).fingerprint
    assert len({first, other, tokenizer}) == 3


def test_one_sided_models_and_missing_files_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    import transformers as hf

    hf.BertModel(hf.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        tmp_path / "bert"
    )
    with pytest.raises(ConfigError, match="no dual encoder"):
        load_pretrained_dual(str(tmp_path / "bert"))
    with pytest.raises(ConfigError, match="no such folder"):
        load_pretrained_dual(str(tmp_path / "nowhere"))
    bare = shutil.copytree(folders["clip"], tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="cannot load the dual encoder"):
        load_pretrained_dual(str(bare))


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_gives_unit_vectors_near_to_fp32(folders: dict[str, Path], kind: str) -> None:
    exact, near = (load_pretrained_dual(str(folders[kind])) for _ in range(2))
    run_all_in("bf16", near.image_backbone, near.text_backbone, compiled=False)
    size = exact.image_backbone.spec.size_px
    pixels_BHW3 = torch.randint(0, 256, (3, size, size, 3), dtype=torch.uint8)
    for encode, rows in (("encode_images", pixels_BHW3), ("encode_texts", CAPTIONS)):
        a_BD, b_BD = (getattr(encoder, encode)(rows)[0] for encoder in (exact, near))
        assert b_BD.dtype == torch.float32 and not torch.equal(a_BD, b_BD)
        torch.testing.assert_close(b_BD.norm(dim=1), torch.ones(len(b_BD)))
        assert (a_BD * b_BD).sum(1).min() > 0.98
