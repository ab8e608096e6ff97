"""Scores of pairs for many images and texts, in blocks of bounded memory: all pairs, or a shortlist's. Inference only.

What is kept per row is `SideOutput.pair_tensors()`: of an image its projected regions and keys, in float16 (50 KB at
49 x 512). What it is not: a model, a ranking (retrieval/pair_search.py), or a shortlist (any search by `vectors()`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zscmr_ray.models.base import AlignmentModel, SideOutput

BLOCK_IMAGES = 64

Rows = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


def keep_pairs(output: SideOutput, *, dtype: torch.dtype = torch.float16) -> SideOutput:
    """Return what scores of pairs need of a batch, on the CPU, in `dtype`."""
    return SideOutput.from_loss_tensors(
        {name: value.to("cpu", dtype) for name, value in output.pair_tensors().items()}
    )


def join_pairs(parts: Sequence[SideOutput]) -> SideOutput:
    """Join kept batches, in order."""
    tensors = [part.pair_tensors() for part in parts]
    return SideOutput.from_loss_tensors(
        {name: torch.cat([part[name] for part in tensors]) for name in tensors[0]}
    )


def take_pairs(side: SideOutput, rows: Rows, *, device: torch.device | str = "cpu") -> SideOutput:
    """Return some rows of a side, as float32, on a device."""
    return SideOutput.from_loss_tensors(
        {name: _rows(value, rows).to(device).float() for name, value in side.pair_tensors().items()}
    )


@torch.inference_mode()
def cross_scores(
    model: AlignmentModel,
    image: SideOutput,
    text: SideOutput,
    *,
    image_rows: Rows,
    text_rows: Rows,
    block_images: int = BLOCK_IMAGES,
) -> FloatArray:
    """Score each of some images with each of some texts, [len(image_rows), len(text_rows)].

    Memory: one block of images in float32, and what the model holds for it (models/fused_attention.py).
    """
    assert model.scores_pairs, "this method scores by vectors"
    device = next(model.parameters()).device
    texts = take_pairs(text, text_rows, device=device)
    score_NM = np.empty((len(image_rows), len(text_rows)), np.float32)
    for start in range(0, len(image_rows), block_images):
        images = take_pairs(image, image_rows[start : start + block_images], device=device)
        score_NM[start : start + block_images] = model.score_pairs(images, texts).cpu().numpy()
    return score_NM


@torch.inference_mode()
def shortlist_scores(
    model: AlignmentModel,
    query: SideOutput,
    gallery: SideOutput,
    *,
    query_rows_Q: Rows,
    shortlist_QK: Rows,
    asks: Literal["image", "text"],
) -> FloatArray:
    """Score each query with the gallery rows of its own shortlist, [Q, K]: the second stage of a search.

    `asks` is the side of the queries; the gallery is the other. One query at a time: K pairs.
    """
    assert model.scores_pairs, "this method scores by vectors"
    device = next(model.parameters()).device
    score_QK = np.empty(shortlist_QK.shape, np.float32)
    for place, (query_row, rows_K) in enumerate(zip(query_rows_Q, shortlist_QK, strict=True)):
        asking = take_pairs(query, np.array([query_row]), device=device)
        searched = take_pairs(gallery, rows_K, device=device)
        sides = (asking, searched) if asks == "image" else (searched, asking)
        score_QK[place] = model.score_pairs(*sides).flatten().cpu().numpy()
    return score_QK


def _rows(value: Tensor, rows: Rows) -> Tensor:
    return value[torch.from_numpy(np.asarray(rows, np.int64))]
