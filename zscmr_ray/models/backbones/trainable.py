"""Training the last blocks of a backbone from pixels or captions: which tensors, from where on, with how much memory.

    unfreeze(backbone, blocks=2)    the last two blocks and what follows them; "all" adds what comes before the first

Which tensors these are, autograd is asked once, with a probe cut off before the first trained block: poolers and class
heads that no region depends on stay out. They become parameters, all others buffers that are in no state dict, so that
parameters and state dict of a backbone are what is trained, nothing else. The backbone stays in eval mode: BatchNorm keeps
its statistics (scale and shift are trained where they are not folded in), dropout does nothing, no row depends on another.

Legend: B batch, H W pixels, h w feature map, R image regions, L text tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.backbones.base import ImageBackbone, TextBackbone
from zscmr_ray.models.backbones.frozen import FrozenBackbone

Blocks = int | Literal["all"]
PASS_ROWS = 64  # rows of a pass where the backbone names none, and on a GPU


class TrainedImage(nn.Module):
    """An image backbone whose last blocks are trained: states before them in, regions out, with a gradient."""

    def __init__(self, backbone: ImageBackbone, *, blocks: Blocks, region_grid: int) -> None:
        """Unfreeze the backbone in place. Raises ConfigError for blocks it has not."""
        super().__init__()
        self.backbone, self.region_grid = backbone, region_grid
        first = unfreeze(backbone, blocks=blocks)
        self.entry = _entry(backbone, first)

    @torch.no_grad()
    def feed(self, pixels_BHW3: Tensor) -> Tensor:
        """Return what the trained part is fed with: the states before it, or the uint8 pixels where it begins with them.

        The passes have one size whatever B is, so that a row's states are the same bits beside any other rows.
        """
        if self.entry == 0 or len(pixels_BHW3) == 0:
            return pixels_BHW3
        backbone, size = self.backbone, pass_rows(self.backbone)
        short = -len(pixels_BHW3) % size
        padded_PHW3 = torch.cat([pixels_BHW3, pixels_BHW3[-1:].expand(short, -1, -1, -1)])
        before = backbone.sequence()[: self.entry]
        states = [_through(before, backbone._normalise(part)) for part in torch.split(padded_PHW3, size)]
        return torch.cat(states)[: len(pixels_BHW3)]

    def forward(self, fed_B: Tensor) -> Tensor:
        """Encode what `feed` gave to regions [B, region_grid ** 2, D] float32."""
        # Trained in one pass (EfficientNet-Lite0's last block, 64 rows: 308 against 398 ms in passes of 4); else in small
        # ones, whose maps stay in the cache.
        rows = max(1, len(fed_B)) if self.training else pass_rows(self.backbone)
        parts = [self._regions(part) for part in torch.split(fed_B, rows)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _regions(self, fed_B: Tensor) -> Tensor:
        if self.entry == 0:
            return self.backbone._encode_part(fed_B, self.region_grid)[0]
        map_BDhw = _through(self.backbone.sequence()[self.entry :], fed_B)
        if map_BDhw.shape[-1] != self.region_grid:
            map_BDhw = F.adaptive_avg_pool2d(map_BDhw, self.region_grid)
        return map_BDhw.permute(0, 2, 3, 1).flatten(1, 2).float()


class TrainedText(nn.Module):
    """A text backbone whose last blocks are trained: token ids in, token states out, with a gradient.

    The frozen layers run again in each step: at caption lengths they cost less than keeping their states would.
    """

    def __init__(self, backbone: TextBackbone, *, blocks: Blocks) -> None:
        """Unfreeze the backbone in place. Raises ConfigError for blocks it has not."""
        super().__init__()
        self.backbone = backbone
        unfreeze(backbone, blocks=blocks)

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Encode token ids of true lengths [B] to states [B, L, D] float32, zero in the padding."""
        mask_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B[:, None]
        whole = bool(mask_BL.all())
        tokens_BLD = self.backbone._encode(ids_BL, None if whole else mask_BL)
        return tokens_BLD.float() * mask_BL[..., None]


def unfreeze(backbone: FrozenBackbone, *, blocks: Blocks) -> int:
    """Make the last `blocks` blocks trainable, in place; returns the number of the first one (0 also for "all").

    Raises ConfigError for a backbone without blocks, or with fewer.
    """
    found = backbone.blocks()
    if not found or (blocks != "all" and not 1 <= blocks <= len(found)):
        raise ConfigError(
            f"backbone {backbone.id} has no such blocks to train",
            got=blocks,
            expected=f'1 to {len(found)}, or "all"' if found else "a network of blocks: this one has none",
            remedy="set model.image_blocks or model.text_blocks; 0 leaves the backbone frozen",
        )
    backbone.prepare_training()
    places = [place for place in backbone.weights() if getattr(*place).is_floating_point()]
    tensors = [getattr(*place) for place in places]
    # One parameter a tensor: weights may be tied.
    made = {id(tensor): nn.Parameter(tensor.detach()) for tensor in tensors}
    for (module, name), tensor in zip(places, tensors, strict=True):
        _put(module, name, made[id(tensor)])
    first = 0 if blocks == "all" else len(found) - blocks
    trained = _reached(backbone, list(made.values()), None if blocks == "all" else found[first])
    for (module, name), tensor in zip(places, tensors, strict=True):
        if id(made[id(tensor)]) not in trained:
            _put(module, name, tensor.detach())
    for module in backbone.modules():
        module._non_persistent_buffers_set.update(module._buffers)
    return first


def recompute_blocks(backbone: FrozenBackbone) -> None:
    """Keep no activations inside the trained blocks: backward computes them again (activation checkpointing)."""
    for block in backbone.blocks():
        if any(True for _ in block.parameters()):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def pass_rows(backbone: ImageBackbone) -> int:
    """Return how many pictures go through the network together."""
    return (backbone.cpu_rows if backbone.device.type == "cpu" else None) or PASS_ROWS


def _through(layers: Sequence[nn.Module], states: Tensor) -> Tensor:
    for layer in layers:
        states = layer(states)
    return states


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Register a tensor as what it is: a Parameter as parameter, any other as buffer."""
    delattr(module, name)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor, persistent=False)


def _reached(
    backbone: FrozenBackbone, parameters: Sequence[nn.Parameter], first: nn.Module | None
) -> frozenset[int]:
    """The ids of parameters that a gradient reaches when the input of the first trained block has none."""
    device = backbone.device
    if first is not None:
        hook = first.register_forward_pre_hook(_detached, with_kwargs=True)
    with torch.enable_grad():
        if isinstance(backbone, ImageBackbone):
            size = backbone.spec.size_px
            output = backbone._encode_part(
                torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device), backbone.native_grid
            )[0]
        else:
            assert isinstance(backbone, TextBackbone), "a backbone of pictures or of texts"
            output = backbone._encode(backbone.tokenize(["a"]).ids_BL.to(device), None)
        gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    if first is not None:
        hook.remove()
    return frozenset(
        id(parameter)
        for parameter, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None
    )


def _detached(
    module: nn.Module, inputs: tuple[object, ...], named: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    del module
    return tuple(_without_gradient(one) for one in inputs), {
        name: _without_gradient(one) for name, one in named.items()
    }


def _without_gradient(value: object) -> object:
    return value.detach() if isinstance(value, Tensor) else value


def _entry(backbone: ImageBackbone, first: int) -> int:
    """Where in the row of layers training enters, 0 = at the pixels: there too where the states are larger than they."""
    layers, blocks = backbone.sequence(), backbone.blocks()
    trains_input = any(True for layer in layers[:1] for _ in layer.parameters())
    if not layers or trains_input:
        return 0
    entry = layers.index(blocks[first])
    size = backbone.spec.size_px
    pixels_1HW3 = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=backbone.device)
    with torch.no_grad():
        states = _through(layers[:entry], backbone._normalise(pixels_1HW3))
    return entry if states.numel() <= pixels_1HW3.numel() else 0
