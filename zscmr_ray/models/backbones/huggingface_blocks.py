"""Which layers of a Hugging Face model can be trained one after the other, and which tensors are its weights.

Not the models themselves (huggingface.py), nor the training of the last blocks (trainable.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from zscmr_ray.models.backbones.frozen import FrozenBackbone


class HuggingFaceBlocks(FrozenBackbone):
    """What image and text models share: a list of equal layers (or of stages), weights that are parameters."""

    model: Any

    def blocks(self) -> Sequence[nn.Module]:
        """Return the model's outermost list of layers: a transformer's layers, a ConvNeXt's or ResNet's stages."""
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len({type(layer) for layer in module}) == 1:
                return tuple(module)
        return ()

    def weights(self) -> Iterator[tuple[nn.Module, str]]:
        """Yield the model's parameters; its buffers (BatchNorm's statistics, positions) are never trained."""
        for module in self.model.modules():
            named = module._parameters.items()
            yield from ((module, name) for name, tensor in named if tensor is not None)
