"""ConSE, a training-free baseline: an image is the mean of its likely classes' names. Norouzi et al., ICLR 2014.

    image = unit( sum over the T most likely classes c of p(c) * v(c) ),  text = its sentence vector

with p the frozen teacher's softmax and v(c) the unit sentence vector of the class's name as the teacher gives it, all its
synonyms, without a template ("tench, Tinca tinca"). On pseudo-unseen classes cut from fashion's seen ones that is the
stronger baseline: class mAP .377, "a photo of a tench" .341, "tench" .338 (class words masked: .325, .291, .280). T matters
little from 5 on. The vector is made unit, so the published division by the T probabilities' sum is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.backbones import TextBackbone

TOP_T = 10


class ConSE:
    """Class-name vectors and how many classes speak for an image."""

    def __init__(self, class_vectors_CD: Tensor, top_t: int = TOP_T) -> None:
        """Take unit class-name vectors [C, D], in the order of the teacher's head; T is cut to C.

        Raises ConfigError for T below 1 or for no classes.
        """
        if top_t < 1 or len(class_vectors_CD) == 0:
            raise ConfigError(
                "ConSE needs classes", got=f"T={top_t} of {len(class_vectors_CD)} classes", expected="T >= 1"
            )
        self.class_vectors_CD = class_vectors_CD
        self.top_t = min(top_t, len(class_vectors_CD))

    def image(self, logits_NC: Tensor) -> Tensor:
        """Give unit vectors [N, D] from teacher logits [N, C].

        >>> conse = ConSE(torch.eye(3), top_t=2)
        >>> conse.image(torch.tensor([[0.0, 0.0, -9.0]])).round(decimals=3).tolist()
        [[0.7070000171661377, 0.7070000171661377, 0.0]]
        """
        assert logits_NC.shape[1] == len(self.class_vectors_CD), (
            f"{logits_NC.shape[1]} logits for {len(self.class_vectors_CD)} classes"
        )
        top = logits_NC.float().softmax(1).topk(self.top_t, dim=1)
        mixed_ND = torch.einsum("nt,ntd->nd", top.values, self.class_vectors_CD[top.indices])
        return F.normalize(mixed_ND, dim=1)


def class_name_vectors(text_backbone: TextBackbone, class_names: Sequence[str]) -> Tensor:
    """Give the unit sentence vector [C, D] of each class's name with its synonyms, as the teacher writes it."""
    return text_backbone.sentence_BD(text_backbone(class_names))
