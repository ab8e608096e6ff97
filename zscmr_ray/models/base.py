"""What every alignment model promises: outputs of one side, vectors made of unit blocks, and a loss of the global batch.

FGAN is the first; a method with a region block only, or a label block only, fits the same base. It knows nothing of
ranks: the engine gathers `SideOutput.loss_tensors()` and calls `loss` on the whole batch (DESIGN 1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zscmr_ray.errors import ConfigError
from zscmr_ray.losses.relations import Relations
from zscmr_ray.models.noise import RowNoise

Made = TypeVar("Made")

REGION, LABEL = "region", "label"
LOSS_TENSORS = (
    "region_BD",
    "logits_BC",
    "reconstruction_B",
    "kl_B",
    "regions_BRD",
    "keys_BRA",
    "query_BA",
    "log_weights_BR",
)
PAIR_TENSORS = ("region_BD", "regions_BRD", "keys_BRA", "query_BA")


@dataclass(frozen=True, slots=True)
class VectorBlock:
    """Columns start to stop (exclusive) of a stored vector: one unit-norm part of it."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)  # no slots: ZeRO 3 hooks read a module's output with vars()
class SideOutput:
    """What a model says of one side of a batch; a part that the model lacks is None.

    region_BD: unit vectors, float32. logits_BC: float32. weights_BR: selection weights per token, 0 in padding.
    reconstruction_B, kl_B: the VAE's terms per row, in training only. For scores of pairs (models/imfa.py):
    regions_BRD: projected regions; keys_BRA: what a text attends to; query_BA: what it asks with; log_weights_BR: the
    logarithm of the text-free attention.
    """

    region_BD: Tensor | None = None
    logits_BC: Tensor | None = None
    weights_BR: Tensor | None = None
    reconstruction_B: Tensor | None = None
    kl_B: Tensor | None = None
    regions_BRD: Tensor | None = None
    keys_BRA: Tensor | None = None
    query_BA: Tensor | None = None
    log_weights_BR: Tensor | None = None

    def loss_tensors(self) -> dict[str, Tensor]:
        """The tensors that the loss reads, by field name, each with the batch first: what ranks exchange."""
        return {name: value for name in LOSS_TENSORS if (value := getattr(self, name)) is not None}

    @classmethod
    def from_loss_tensors(cls, tensors: Mapping[str, Tensor]) -> SideOutput:
        """Rebuild the output from `loss_tensors()`, gathered or cut; the selection weights are not part of it."""
        return cls(**tensors)

    def pair_tensors(self) -> dict[str, Tensor]:
        """The tensors that `AlignmentModel.score_pairs` reads, by field name, each with the batch first."""
        return {name: value for name in PAIR_TENSORS if (value := getattr(self, name)) is not None}


class AlignmentModel(nn.Module, ABC):
    """A two-sided network over frozen backbone features; `label_temperature` is chosen on pseudo-unseen classes."""

    label_temperature: float = 1.0
    scores_pairs: bool = False
    """Whether `score_pairs` exists: a score of an image and a text that no two vectors give."""
    is_fitted: bool = False
    """Whether the model is fitted at once (engine/fitted.py) and not trained step by step."""

    @property
    def network(self) -> AlignmentModel:
        """The network over backbone features: the model itself, unless encoders are trained with it (models/tuned.py)."""
        return self

    @property
    @abstractmethod
    def blocks(self) -> tuple[VectorBlock, ...]:
        """The blocks of a vector, in order, without gaps."""

    @abstractmethod
    def encode_image(self, regions_BRD: Tensor, *, noise: RowNoise | None = None) -> SideOutput:
        """Encode region features [B, R, channels]; noise is needed in training and ignored in eval."""

    @abstractmethod
    def encode_text(
        self, tokens_BLD: Tensor, lengths_B: Tensor, *, noise: RowNoise | None = None
    ) -> SideOutput:
        """Encode token states [B, L, channels] padded after each row's true length (>= 1)."""

    @abstractmethod
    def loss(
        self, image: SideOutput, text: SideOutput, relations: Relations, prior_logits_BC: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the loss of the global batch: "total" carries the graph, the other parts are detached scalars."""

    @abstractmethod
    def architecture(self) -> dict[str, object]:
        """Plain values from which `build.build_model` makes this model again, "method" among them."""

    def loss_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters that `loss` itself reads, beyond the outputs: their gradient is whole on every rank."""
        return ()

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of encoders that are trained with the network (models/tuned.py)."""
        return []

    def score_pairs(self, image: SideOutput, text: SideOutput) -> Tensor:
        """Score every image with every text by the method's own pair score, [N, M] float32.

        Entry (i, j) depends on image i and text j only. Only where `scores_pairs`; `pair_tensors()` are all it reads.
        """
        raise NotImplementedError(f"{type(self).__name__} scores by vectors")

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.blocks[-1].stop

    def vectors(self, output: SideOutput) -> Tensor:
        """Join the unit blocks of a side: [region ; sqrt(softmax(logits / label_temperature))], [B, dim] float32.

        The inner product of two label blocks is the Bhattacharyya coefficient of the two distributions (SCIENCE 2).
        """
        parts = []
        for block in self.blocks:
            if block.name == LABEL:
                assert output.logits_BC is not None, "a label block without logits"
                parts.append(torch.softmax(output.logits_BC.float() / self.label_temperature, dim=1).sqrt())
            else:
                assert output.region_BD is not None, "a region block without region embeddings"
                parts.append(output.region_BD.float())
        return torch.cat(parts, dim=1)


def read_settings(kind: type[Made], architecture: Mapping[str, Any], *, needed: Collection[str]) -> Made:
    """Read a model's settings dataclass back from `architecture()`. Raises ConfigError for an unknown or a missing field."""
    values = {name: value for name, value in architecture.items() if name != "method"}
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    missing = set(needed) - values.keys()
    if missing or values.keys() - known:
        raise ConfigError(
            f"these are not the settings of method {architecture.get('method')}",
            got=f"unknown {sorted(values.keys() - known)}, missing {sorted(missing)}",
            expected=", ".join(sorted(known)),
        )
    return kind(**values)


def build_seeded(make: Callable[[], Made], *, seed: int) -> Made:
    """Build a model whose initial weights depend on `seed` alone; the global random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()
