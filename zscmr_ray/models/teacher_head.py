"""What a classifier knows by name: its linear head over pooled regions, and the sentence vectors of its class names.

What it is: the bridge between an image backbone that was trained on named classes and a text backbone that reads the names;
`best` (models/best.py) tells unseen classes by them. What it is not: trained, or a baseline
(ConSE, models/conse.py, reads cached logits instead).

Legend: C teacher classes, F channels of an image feature, D channels of a text feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.backbones import ImageBackbone, TextBackbone, synonyms
from zscmr_ray.models.backbones.efficientnet import EfficientNetLite0
from zscmr_ray.models.backbones.tiny import TinyImage
from zscmr_ray.models.conse import class_name_vectors


@dataclass(frozen=True, slots=True)
class TeacherHead:
    """logits = weight . mean region + bias; unit sentence vectors of each class: its name with synonyms, its first name
    alone, and the first name in the prompt "a photo of a ...".
    """

    weight_CF: Tensor
    bias_C: Tensor
    name_CD: Tensor
    first_name_CD: Tensor
    prompt_CD: Tensor


def read_teacher_head(image: ImageBackbone, text: TextBackbone) -> TeacherHead:
    """Read the head of a backbone that classifies its mean region, and its class names.

    Raises ConfigError for a backbone without such a head or without class names.
    """
    match image:
        case EfficientNetLite0():
            weight_CF, bias_C = image.head_weight, image.head_bias
        case TinyImage():
            weight_CF, bias_C = image.head, torch.zeros(len(image.head))
        case _:
            raise _no_head(image.id)
    if image.class_names is None:
        raise _no_head(image.id)
    first_names = [(*synonyms(name), name)[0] for name in image.class_names]
    return TeacherHead(
        weight_CF.float(),
        bias_C.float(),
        class_name_vectors(text, image.class_names),
        class_name_vectors(text, first_names),
        class_name_vectors(text, [f"a photo of a {name}" for name in first_names]),
    )


def _no_head(backbone: str) -> ConfigError:
    return ConfigError(
        "method best needs a teacher: a classifier of the mean region whose classes have names",
        got=f"image backbone {backbone}",
        expected="efficientnet-lite0",
        remedy="use recipe supcon, or preprocess with --set preprocess.image_backbone=efficientnet-lite0",
    )
