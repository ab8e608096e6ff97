"""The training-free baselines beside the model: CCA and ridge fitted on the training rows, ConSE from class names.

What it is: the same rows as the model's, other vectors, or the reason why a baseline cannot be had. What it is not:
the baselines' mathematics (`models/cca.py`, `ridge.py`, `conse.py`). Chance needs no vectors: it is beside every number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zscmr_ray.models.backbones import load_text_backbone, synonyms
from zscmr_ray.models.cca import CCA
from zscmr_ray.models.conse import ConSE, class_name_vectors
from zscmr_ray.models.ridge import Ridge
from zscmr_ray.retrieval.protocol import ClassGroups
from zscmr_ray.retrieval.searches import Searchable, Towers
from zscmr_ray.stages.measure.rows import EncodedRows

MIN_PAIRS = 32


@dataclass(frozen=True, slots=True)
class Baseline:
    """A row's towers, or why it was not run."""

    key: str
    name: str
    towers: Searchable | None
    reason: str = ""


def make_baselines(rows: EncodedRows, groups: ClassGroups, info: Mapping[str, Any]) -> list[Baseline]:
    """Return CCA, ridge and ConSE for the rows; `info` is the pairs' manifest's."""
    return [*_fitted(rows, groups), _conse(rows, info)]


def shared_names(classes: Sequence[str], teacher_names: Sequence[str]) -> list[str]:
    """Return the classes that carry the name of a teacher class: same words, any synonym, plural or not.

    >>> shared_names(["T-shirts", "face-smiling"], ["jersey, T-shirt, tee shirt"])
    ['T-shirts']
    """
    known = {_folded(word) for name in teacher_names for word in synonyms(name)}
    return [name for name in classes if _folded(name) in known]


def _folded(name: str) -> str:
    words = name.lower().replace("-", " ").replace("_", " ").split()
    return " ".join(word.removesuffix("s") for word in words)


def _fitted(rows: EncodedRows, groups: ClassGroups) -> list[Baseline]:
    """What is fitted on pairs of training rows."""
    corpus = rows.corpus
    trained_N = corpus.partition_N == "train"
    if groups.classes:
        trained_N &= groups.of_items(corpus.labels) == "S"
    captions = np.flatnonzero(trained_N[corpus.text_item_M])
    names = {"cca": "CCA", "ridge": "ridge regression"}
    if len(captions) < MIN_PAIRS:
        reason = f"{len(captions)} training pairs; it needs at least {MIN_PAIRS}"
        return [Baseline(key, name, None, reason) for key, name in names.items()]
    image_BF, text_BF = rows.image_mean_NF[corpus.text_item_M[captions]], rows.text_mean_MF[captions]
    fitted: dict[str, CCA | Ridge] = {
        "cca": CCA.fit(image_BF, text_BF),
        "ridge": Ridge.fit(image_BF, text_BF),
    }
    return [
        Baseline(
            key,
            name,
            Towers.symmetric(fitted[key].image(rows.image_mean_NF), fitted[key].text(rows.text_mean_MF)),
        )
        for key, name in names.items()
    ]


def _conse(rows: EncodedRows, info: Mapping[str, Any]) -> Baseline:
    teacher = info["teacher"]
    if teacher is None or rows.prior_logits_NC is None:
        return Baseline("conse", "ConSE", None, "the pairs have no teacher logits")
    if teacher["class_names"] is None:
        return Baseline("conse", "ConSE", None, "the teacher's classes have no names here")
    text = load_text_backbone(info["text_backbone"]["id"], max_tokens=info["max_tokens"])
    conse = ConSE(class_name_vectors(text, teacher["class_names"]))
    image = conse.image(torch.from_numpy(rows.prior_logits_NC))
    sentence = torch.nn.functional.normalize(torch.from_numpy(rows.text_mean_MF), dim=1)
    return Baseline("conse", "ConSE", Towers.symmetric(image.numpy(), sentence.numpy()))
