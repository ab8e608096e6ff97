"""What image and text backbones share: identity, the eval lock, no gradient, the arithmetic they run in. Not saved.

A frozen network in train mode moves its BatchNorm statistics and makes a row's prior depend on its neighbours
(SCIENCE 2, defect 7), so `train()` leaves a backbone in eval mode whoever calls it, and nothing here carries a gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16"]


class FrozenBackbone(nn.Module):
    """What image and text backbones share: identity, the eval lock, and no gradient."""

    id: str
    weights_sha256: str
    num_channels: int
    trained_on: str
    precision: Precision = "fp32"
    # The methods that are the network, for a compiler: what is around them is Python on the host.
    networks: ClassVar[tuple[str, ...]] = ("_encode",)

    def run_in(self, precision: Precision, *, compiled: bool = False) -> Self:
        """Choose the arithmetic of the network, for good, and whether torch compiles it; answers are float32 either way.

        bf16 is autocast: products of bfloat16 with sums in float32. Compiling takes a minute at the first batch, and one
        graph serves any number of rows, so that a chunk's bytes do not depend on those before it.
        """
        self.precision = precision
        if precision == "bf16":
            # The same bits as by autocast alone, which would round them anew in each pass: 8 pictures took a fifth longer.
            for module in filter(_multiplies, self.modules()):
                module.to(torch.bfloat16)
        for name in self.networks if compiled else ():
            setattr(self, name, _compiled(getattr(self, name)))
        return self

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """The context that the network runs in."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: `mode` is what the owner asked for, and is not obeyed."""
        del mode
        return super().train(False)

    def freeze(self) -> Self:
        """Take the gradient off every parameter and go to eval mode; subclasses call it last in `__init__`."""
        return self.requires_grad_(False).train(False)

    def blocks(self) -> Sequence[nn.Module]:
        """Return the layers that can be trained one after the other, the last one last; none where there are none."""
        return ()

    def weights(self) -> Iterator[tuple[nn.Module, str]]:
        """Yield (module, name) of every tensor that is a weight: here buffers, so that nothing of it is ever saved."""
        for module in self.modules():
            yield from ((module, name) for name in module._buffers)

    def prepare_training(self) -> None:
        """Bring weights that are kept in a faster form back to their own before they are trained."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensor = next(iter(self.buffers()), None)
        return (tensor if tensor is not None else next(self.parameters())).device


def run_all_in(precision: Precision, *backbones: FrozenBackbone | None, compiled: bool) -> None:
    """`run_in` for the backbones that there are."""
    for backbone in backbones:
        if backbone is not None:
            backbone.run_in(precision, compiled=compiled)


def _multiplies(module: nn.Module) -> bool:
    """Whether it is a linear layer or a convolution, torch's or one of ours: a matrix, and no table of rows."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() > 1 and not isinstance(module, nn.Embedding)


def _compiled(network: Callable[..., Any]) -> Callable[..., Any]:
    """The network compiled, with one graph for any number of rows, and of tokens where a row is that."""
    graph = torch.compile(network)

    def run(*inputs: Tensor | None) -> Any:
        for tensor in inputs:
            if tensor is not None:
                for axis in range(2 if tensor.dim() == 2 else 1):
                    torch._dynamo.maybe_mark_dynamic(tensor, axis)
        return graph(*inputs)

    return run
