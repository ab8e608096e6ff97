"""Validation on held-out rows while training: encode them with the current weights, choose (lambda, tau), score.

The rows are pseudo-unseen classes' (queries val and test, gallery train), or the val partition where the corpus has no
classes (retrieval/selection.py). Unseen classes are never here. What it is not: the report (stages/evaluate.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zscmr_ray.data.pairs import PairFeatures
from zscmr_ray.models.base import AlignmentModel, SideOutput
from zscmr_ray.retrieval.searches import Corpus
from zscmr_ray.retrieval.selection import FusionChoice, HeadOutputs, select_fusion, selection_rows

_BATCH_ROWS = 256
FloatArray = npt.NDArray[np.float32]


class Validator:
    """Scores weights on held-out rows; owns a model of its own, so that training never leaves train mode."""

    def __init__(
        self,
        model: AlignmentModel,
        features: PairFeatures,
        *,
        pseudo_unseen: Sequence[str],
        device: str = "cpu",
    ) -> None:
        corpus = Corpus(features.ids, features.labels, features.partition, features.caption_item_M)
        selection_rows(corpus, pseudo_unseen)  # refuses at once what could only fail after an epoch
        self.model, self.features, self.device = model.to(device).eval(), features, device
        self.corpus, self.pseudo_unseen = corpus, tuple(pseudo_unseen)

    def score(self, weights: Mapping[str, Tensor]) -> FusionChoice:
        """Return the best (label_weight, label_temperature) for some weights, with its average mAP."""
        self.model.load_state_dict(dict(weights))
        outputs = head_outputs(self.model, self.features, device=self.device)
        return select_fusion(outputs, self.corpus, pseudo_unseen=self.pseudo_unseen)


@torch.inference_mode()
def head_outputs(model: AlignmentModel, features: PairFeatures, *, device: str = "cpu") -> HeadOutputs:
    """Encode all items and all their captions in eval mode, without noise."""
    images, texts = _Heads(), _Heads()
    for rows in _blocks(len(features)):
        images.add(model.encode_image(features.image_inputs(rows).to(device)))
    for places in _blocks(features.num_captions):
        tokens_BLD, lengths_B = features.padded_tokens(places)
        texts.add(model.encode_text(tokens_BLD.to(device), lengths_B.to(device)))
    return HeadOutputs(
        image_regions_ND=images.regions(len(features)),
        text_regions_MD=texts.regions(features.num_captions),
        image_logits_NC=images.logits(),
        text_logits_MC=texts.logits(),
    )


class _Heads:
    """Both heads' outputs of the rows so far; whatever else an output holds (projected regions) is let go at once."""

    def __init__(self) -> None:
        self._regions: list[FloatArray] = []
        self._logits: list[FloatArray] = []

    def add(self, output: SideOutput) -> None:
        for parts, value in ((self._regions, output.region_BD), (self._logits, output.logits_BC)):
            if value is not None:
                parts.append(value.float().cpu().numpy())

    def regions(self, count: int) -> FloatArray:
        """Unit region vectors; a single zero column, which scores every pair alike, where the model has none."""
        return np.concatenate(self._regions) if self._regions else np.zeros((count, 1), np.float32)

    def logits(self) -> FloatArray | None:
        return np.concatenate(self._logits) if self._logits else None


def _blocks(count: int) -> list[npt.NDArray[np.int64]]:
    return [np.arange(start, min(start + _BATCH_ROWS, count)) for start in range(0, count, _BATCH_ROWS)]
