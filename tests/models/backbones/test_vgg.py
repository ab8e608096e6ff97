"""VGG from timm's and torchvision's tensors against a plain module: regions, logits, pooling places, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.models.backbones import load_image_backbone

PLAN = (8, 8, "M", 12, "M", 16, 16, "M")  # a VGG of five convolutions; 32 px give a 4 x 4 map
SIZE_PX, NUM_CLASSES, HIDDEN = 32, 5, 20
CONFIG = {
    "architecture": "vgg19_bn",
    "pretrained_cfg": {
        "input_size": [3, SIZE_PX, SIZE_PX],
        "crop_pct": 0.8,
        "interpolation": "bicubic",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.4],
    },
}


class PlainVgg(nn.Module):
    """As torchvision writes it."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for step in PLAN:
            if isinstance(step, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [
                nn.Conv2d(channels, step, 3, padding=1),
                *([nn.BatchNorm2d(step)] if norm else []),
                nn.ReLU(),
            ]
            channels = step
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 16, HIDDEN), nn.ReLU(), nn.Dropout(),
            nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout(), nn.Linear(HIDDEN, NUM_CLASSES),
        )  # fmt: skip

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        states = self.features(images)
        return states, self.classifier(states.flatten(1))


def make(folder: Path, *, norm: bool = True, layout: str = "torchvision", **config: Any) -> PlainVgg:
    torch.manual_seed(0)
    model = PlainVgg(norm=norm)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "running_var" in name:
                tensor.uniform_(0.5, 2.0)
            elif "num_batches" not in name and tensor.dim() == 1:
                tensor.normal_(0.5, 0.2)
    tensors = dict(model.eval().state_dict())
    if layout == "timm":
        for old, new, shape in (
            ("classifier.0", "pre_logits.fc1", (HIDDEN, 16, 4, 4)),
            ("classifier.3", "pre_logits.fc2", (HIDDEN, HIDDEN, 1, 1)),
            ("classifier.6", "head.fc", (NUM_CLASSES, HIDDEN)),
        ):
            tensors[f"{new}.weight"] = tensors.pop(f"{old}.weight").reshape(shape)
            tensors[f"{new}.bias"] = tensors.pop(f"{old}.bias")
    elif layout == "features":
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("features")}
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return model


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("layout", ["torchvision", "timm", "features"])
def test_regions_and_logits_are_the_plain_modules(tmp_path: Path, norm: bool, layout: str) -> None:
    plain = make(tmp_path / "vgg", norm=norm, layout=layout)
    backbone = load_image_backbone(f"hf:{tmp_path / 'vgg'}")
    assert (backbone.num_channels, backbone.native_grid) == (16, 4)
    batch = torch.randint(0, 256, (6, SIZE_PX, SIZE_PX, 3), dtype=torch.uint8)
    images = (batch.float() / 255 - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.3, 0.4])
    with torch.no_grad():
        states, logits = plain(images.permute(0, 3, 1, 2))
    found = backbone(batch, region_grid=4)
    torch.testing.assert_close(found.regions_BRD, states.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    if layout == "features":
        assert found.logits_BC is None and backbone.num_classes is None
        return
    assert found.logits_BC is not None and backbone.class_names is None
    torch.testing.assert_close(found.logits_BC, logits, rtol=1e-4, atol=1e-4)
    assert backbone(batch, region_grid=2).logits_BC.equal(found.logits_BC)


def test_pixels_and_names_are_as_the_folder_says(tmp_path: Path) -> None:
    make(tmp_path / "named", label_names=list("abcde"))
    backbone = load_image_backbone(f"hf:{tmp_path / 'named'}")
    spec = backbone.spec
    assert (spec.size_px, spec.crop_fraction, spec.interpolation) == (SIZE_PX, 0.8, "bicubic")
    assert (backbone.class_names, backbone.num_classes) == (tuple("abcde"), 5)


def test_other_tensors_are_refused_and_equal_ones_hash_alike(tmp_path: Path) -> None:
    hashes = []
    for name in ("one", "two"):
        make(tmp_path / name)
        hashes.append(load_image_backbone(f"hf:{tmp_path / name}").weights_sha256)
    assert hashes[0] == hashes[1]
    save_file({"classifier.weight": torch.zeros(2, 2)}, tmp_path / "one" / "model.safetensors")
    with pytest.raises(DataError, match="no VGG"):
        load_image_backbone(f"hf:{tmp_path / 'one'}")
    (tmp_path / "two" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot load the image backbone"):
        load_image_backbone(f"hf:{tmp_path / 'two'}")
