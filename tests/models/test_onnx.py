"""ONNX towers: the same vectors as torch within 1e-4, for every method, from files that run without this project."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zscmr_ray.errors import ConfigError, MissingPackageError, ZscmrError
from zscmr_ray.models.backbones import load_image_backbone, load_text_backbone
from zscmr_ray.models.build import build_model
from zscmr_ray.models.dual_encoder import DualEncoder
from zscmr_ray.models.onnx import exporting
from zscmr_ray.models.onnx.towers import counted_topk, pooling_matrix
from zscmr_ray.models.topk import hard_topk

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in exporting.PACKAGES),
    reason='the onnx extra is not installed: pip install -c constraints.txt -e ".[onnx]"',
)
LETTERS = "a b c d e f g h i j k l m n o p q r s t"
# 10 and 20 tokens: ratio x length is whole there.
CAPTIONS = ["one", "two words", LETTERS[:27], "three words here", LETTERS[:19], LETTERS]


def make_encoder(
    method: str = "fgan", *, backbones: tuple[str, str] = ("tiny", "tiny"), **settings: Any
) -> DualEncoder:
    """An untrained model whose scores differ enough that no rounding changes what top-k selects."""
    image = load_image_backbone(backbones[0])
    text = load_text_backbone(backbones[1], max_tokens=24)
    channels = {"image_channels": image.num_channels, "text_channels": text.num_channels}
    classes = {"num_classes": 16} if method == "fgan" else {}
    model = build_model({"method": method, "width": 32, **channels, **classes, **settings}, seed=3)
    return DualEncoder(image, text, model, region_grid=4)


def pixels(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(count).integers(0, 255, (count, 224, 224, 3), np.uint8))


@needs_onnx
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("fgan", {"ratio": 0.3, "latent": 8, "num_heads": 2}),
        pytest.param(
            "fgan",
            {"selection": "mean", "latent": 8, "text_trunk": "linear", "num_heads": 2},
            marks=pytest.mark.long,
        ),
        pytest.param("inn", {"attention": "fused"}, marks=pytest.mark.long),
        ("tower", {"tower": "mlp"}),
    ],
    ids=["fgan", "fgan-mean", "imfa", "tower"],
)
def test_the_towers_agree_with_torch(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    encoder = make_encoder(method, **settings)
    contract = exporting.export_towers(encoder, tmp_path)
    assert max(contract["largest_difference_from_torch"].values()) <= exporting.TOLERANCE
    # Other batch sizes and other widths than those that were traced.
    for count in (1, 5):
        found = exporting.run_tower(tmp_path / exporting.IMAGE, {"pixels": pixels(count).numpy()})
        np.testing.assert_allclose(found, encoder.encode_images(pixels(count))[0], atol=1e-4)
    for captions in (CAPTIONS, CAPTIONS[:1]):
        inputs = exporting.text_inputs(captions, encoder.text_backbone)  # type: ignore[arg-type]
        found = exporting.run_tower(tmp_path / exporting.TEXT, {k: v.numpy() for k, v in inputs.items()})
        np.testing.assert_allclose(found, encoder.encode_texts(captions)[0], atol=1e-4)


@needs_onnx
def test_the_files_do_not_say_who_made_them(tmp_path: Path) -> None:
    exporting.export_towers(make_encoder("tower"), tmp_path)
    for name in (exporting.IMAGE, exporting.TEXT):
        data = (tmp_path / name).read_bytes()
        for secret in (b".py", b"stack_trace", str(Path.cwd()).encode()):
            assert secret not in data, (name, secret)


@needs_onnx
def test_packaged_backbones_and_their_tokenizer(tmp_path: Path) -> None:
    encoder = make_encoder(backbones=("efficientnet-lite0", "minilm"), latent=8, num_heads=2)
    contract = exporting.export_towers(encoder, tmp_path)
    assert contract["text"]["tokenizer"] == exporting.TOKENIZER
    assert json.dumps(contract["image"]["preprocessing"])
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tmp_path / exporting.TOKENIZER))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(CAPTIONS)
    inputs = {
        "input_ids": np.array([one.ids for one in encoded]),
        "attention_mask": np.array([one.attention_mask for one in encoded]),
    }
    found = exporting.run_tower(tmp_path / exporting.TEXT, inputs)
    np.testing.assert_allclose(found, encoder.encode_texts(CAPTIONS)[0], atol=1e-4)


@needs_onnx
def test_an_export_that_does_not_agree_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", 0.0)
    with pytest.raises(ZscmrError, match="does not agree with torch"):
        exporting.export_towers(make_encoder("tower"), tmp_path)


@needs_onnx
def test_a_model_that_draws_noise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="draws noise"):
        exporting.export_towers(make_encoder(eval_selection="soft", latent=8, num_heads=2), tmp_path)


def test_counting_selects_what_sorting_selects() -> None:
    """Ties, padding and every k, against the operator that the model uses."""
    random = torch.Generator().manual_seed(0)
    scores_BL = torch.randint(0, 5, (200, 9), generator=random).float()
    lengths_B = torch.randint(1, 10, (200,), generator=random)
    k_B = torch.minimum(torch.randint(0, 10, (200,), generator=random), lengths_B)
    expected_BL = hard_topk(scores_BL, lengths_B=lengths_B, k_B=k_B)
    assert torch.equal(counted_topk(scores_BL, lengths_B, k_B, noise=None, side="text"), expected_BL)


@pytest.mark.parametrize("grid", [1, 3, 4, 7])
def test_pooling_by_a_matrix_is_adaptive_pooling(grid: int) -> None:
    map_BDhw = torch.randn(2, 5, 7, 7)
    expected_BDR = torch.nn.functional.adaptive_avg_pool2d(map_BDhw, grid).flatten(2)
    torch.testing.assert_close(map_BDhw.flatten(2) @ pooling_matrix(7, grid), expected_BDR)


def test_without_the_packages_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "PACKAGES", ("no_such_package",))
    with pytest.raises(MissingPackageError, match="no_such_package") as caught:
        exporting.export_towers(make_encoder("tower"), tmp_path)
    assert "[onnx]" in str(caught.value)
