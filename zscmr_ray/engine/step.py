"""One training step as a pure function of its number: which rows, which captions, which noise, which loss.

    rows -> this rank's slice -> encode both sides -> gather the outputs -> loss of the global batch

Rows, captions and noise depend on (seed, step, row) only, never on the rank or the number of ranks (DESIGN 3).
What it is not: backward, the update, precision of the weights: engine/deepspeed.py and engine/bare.py do that.

Legend: B rows of this rank, G rows of the global batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zscmr_ray.data.class_order import make_order
from zscmr_ray.data.order import caption_choice, row_key
from zscmr_ray.data.pairs import PairFeatures
from zscmr_ray.engine.batching import rank_slice, rows_per_rank
from zscmr_ray.engine.collectives import count_once, gather_rows, gather_values
from zscmr_ray.errors import TrainingError
from zscmr_ray.losses.relations import Relations, make_relations
from zscmr_ray.models.base import AlignmentModel, SideOutput
from zscmr_ray.models.noise import RowNoise

Precision = Literal["fp32", "bf16"]
_NAMED_ROWS = 20


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a rank needs for one step: its own rows' features, and the whole batch's relations and priors."""

    step: int
    regions_BRD: Tensor
    tokens_BLD: Tensor
    lengths_B: Tensor
    noise: RowNoise
    relations: Relations
    prior_logits_GC: Tensor | None
    ids_G: tuple[str, ...]

    def rows(self, start: int, stop: int) -> StepInputs:
        """Return the inputs with some of this rank's rows only; what is the whole batch's stays whole."""
        return replace(
            self,
            regions_BRD=self.regions_BRD[start:stop],
            tokens_BLD=self.tokens_BLD[start:stop],
            lengths_B=self.lengths_B[start:stop],
            noise=replace(self.noise, rows_B=self.noise.rows_B[start:stop]),
        )


class StepSource:
    """Makes the inputs of any step of a run over some training rows; holds no state that a step changes."""

    def __init__(
        self,
        features: PairFeatures,
        *,
        global_batch_size: int,
        seed: int,
        rank: int = 0,
        num_workers: int = 1,
        device: str = "cpu",
        classes_per_batch: int | None = None,
    ) -> None:
        rows_per_rank(global_batch_size, num_workers)
        self.features, self.device, self.seed = features, device, seed
        self.rank, self.num_workers = rank, num_workers
        self.order = make_order(
            features.labels,
            global_batch_size=global_batch_size,
            classes_per_batch=classes_per_batch,
            seed=seed,
        )
        self.steps_per_epoch = self.order.steps_per_epoch
        self._keys = [row_key(name) for name in features.ids]
        self._num_captions = np.diff(features.caption_starts_N1)
        self._has_labels = any(features.labels)

    def inputs(self, step: int) -> StepInputs:
        """Return the inputs of global step `step` (from 0) for this rank, on its device."""
        rows_G, visit = self.order.rows(step), self.order.visit(step)
        captions_G = np.array(
            [
                caption_choice(self.seed, visit, self._keys[row], int(self._num_captions[row]))
                for row in rows_G
            ]
        )
        own = rank_slice(np.arange(len(rows_G)), self.rank, self.num_workers)
        batch = self.features.batch(rows_G[own], captions_G[own])
        features, prior = self.features, self.features.prior_logits_NC
        relations = make_relations(
            [features.labels[row] for row in rows_G] if self._has_labels else None,
            [features.image_hash[row] for row in rows_G],
            [features.captions[row][caption] for row, caption in zip(rows_G, captions_G, strict=True)],
        )
        return StepInputs(
            step=step,
            regions_BRD=batch.regions_BRD.to(self.device),
            tokens_BLD=batch.tokens_BLD.to(self.device),
            lengths_B=batch.lengths_B.to(self.device),
            noise=RowNoise(self.seed, step, batch.row_keys_B),
            relations=relations.to(self.device),
            prior_logits_GC=None
            if prior is None
            else torch.from_numpy(prior[rows_G]).float().to(self.device),
            ids_G=tuple(features.ids[row] for row in rows_G),
        )


class AlignmentStep(nn.Module):
    """Encode this rank's rows, gather, and compute the loss of the global batch: what an engine wraps.

    With `micro_batch_size` the rows are encoded so many at a time and only their outputs are kept; backward encodes each
    micro batch anew, with its graph, and gives it the gradient of its outputs: GradCache (Gao et al., RepL4NLP 2021).
    Noise belongs to rows, so that both encodings are the same, and the loss is still that of the whole batch.
    """

    def __init__(
        self, model: AlignmentModel, *, precision: Precision = "fp32", micro_batch_size: int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.micro_batch_size = micro_batch_size
        count_once(model.loss_parameters())

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        """Return the loss parts of the global batch, the same on every rank; "total" carries the graph."""
        gathered = gather_rows(self._encoded(inputs))
        return self.model.loss(
            _side(gathered, "image/"), _side(gathered, "text/"), inputs.relations, inputs.prior_logits_GC
        )

    def _encoded(self, inputs: StepInputs) -> dict[str, Tensor]:
        share = len(inputs.lengths_B)
        micro = self.micro_batch_size or share
        if micro >= share:
            return self._encode(inputs)
        # torch's checkpoint in its non-reentrant form is one backward pass: each parameter's gradient arrives once,
        # which ZeRO's hooks rely on. A backward per micro batch is refused by ZeRO 2.
        parts = [
            checkpoint(self._encode, inputs.rows(start, start + micro), use_reentrant=False)
            for start in range(0, share, micro)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _encode(self, inputs: StepInputs) -> dict[str, Tensor]:
        device_type = inputs.regions_BRD.device.type
        # Master weights stay fp32 under every engine; autocast alone decides the arithmetic.
        with torch.autocast(device_type, torch.bfloat16, enabled=self.precision == "bf16"):
            image = self.model.encode_image(inputs.regions_BRD, noise=inputs.noise)
            text = self.model.encode_text(inputs.tokens_BLD, inputs.lengths_B, noise=inputs.noise)
        outputs = {f"image/{name}": value for name, value in image.loss_tensors().items()}
        return outputs | {f"text/{name}": value for name, value in text.loss_tensors().items()}


def check_finite(total: float, inputs: StepInputs) -> None:
    """Raise TrainingError, naming step and rows, when the loss is NaN or infinite. It is the same on every rank."""
    if math.isfinite(total):
        return
    finite_B = torch.isfinite(inputs.regions_BRD).flatten(1).all(1) & torch.isfinite(
        inputs.tokens_BLD
    ).flatten(1).all(1)
    bad_G = [not finite for share in gather_values(finite_B.tolist()) for finite in share]
    bad = [name for name, is_bad in zip(inputs.ids_G, bad_G, strict=True) if is_bad]
    raise TrainingError(
        f"the loss is {total} at step {inputs.step}",
        got=f"rows {_named(inputs.ids_G)}"
        + (f"; not finite in their features: {_named(bad)}" if bad else "; all their features are finite"),
        expected="a finite loss",
        remedy="remove the rows whose features are not finite, or lower optim.lr or set optim.clip_norm",
    )


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED_ROWS} more" if len(ids) > _NAMED_ROWS else ""
    return ", ".join(ids[:_NAMED_ROWS]) + more


def _side(tensors: dict[str, Tensor], prefix: str) -> SideOutput:
    return SideOutput.from_loss_tensors(
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    )
