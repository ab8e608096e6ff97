"""The one retrieval score, a single inner product: weights on the query, unweighted unit blocks in the gallery.

S(q, g) = (1 - l) <region_q, region_g> + l <label_q, label_g> = <[(1-l) region_q ; l label_q], g>   (SCIENCE 2, ours)
with label = sqrt(softmax(logits / tau)), so that the second term is the Bhattacharyya coefficient of the two label
distributions. What it is: the weighing and slicing of such vectors. What it is not: a model or an index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import ConfigError

REGION = "region"
LABEL = "label"
VARIANTS = ("regions", "labels", "both")

FloatArray = npt.NDArray[np.float32]


class Block(Protocol):
    """A named range of a vector's columns; `VectorBlock` of the models is one."""

    @property
    def name(self) -> str:
        """`region` or `label`."""
        ...

    @property
    def start(self) -> int:
        """First column."""
        ...

    @property
    def stop(self) -> int:
        """One past the last column."""
        ...


def weigh_query(vectors_QD: FloatArray, blocks: Sequence[Block], *, label_weight: float) -> FloatArray:
    """Return the query vectors with the label block times `label_weight`, every other block times 1 - label_weight.

    `label_weight` in [0, 1]; 0 compares regions only, 1 label distributions only. Raises ConfigError outside that
    range, and for a positive weight where the vectors have no label block.

    >>> from types import SimpleNamespace as Part
    >>> parts = [Part(name="region", start=0, stop=1), Part(name="label", start=1, stop=2)]
    >>> weigh_query(np.ones((1, 2), np.float32), parts, label_weight=0.25).tolist()
    [[0.75, 0.25]]
    """
    if not 0.0 <= label_weight <= 1.0:
        raise ConfigError(
            "the label weight (lambda) is out of range",
            got=label_weight,
            expected="0 (regions only) to 1 (label distributions only)",
        )
    if label_weight > 0.0 and not has_block(blocks, LABEL):
        raise ConfigError(
            "these vectors have no label distribution to weigh",
            got=f"label weight {label_weight}, blocks {[block.name for block in blocks]}",
            expected="label weight 0",
            remedy="leave lambda out, or use a model with a label head (fgan)",
        )
    weighed_QD = np.array(vectors_QD, np.float32, copy=True)
    for block in blocks:
        weight = label_weight if block.name == LABEL else 1.0 - label_weight
        weighed_QD[:, block.start : block.stop] *= np.float32(weight)
    return weighed_QD


def has_block(blocks: Sequence[Block], name: str) -> bool:
    """Return whether the vectors have a block of that name."""
    return any(block.name == name for block in blocks)


def block_columns(blocks: Sequence[Block], name: str) -> slice:
    """Return the columns of the named block; ConfigError if the vectors have none."""
    for block in blocks:
        if block.name == name:
            return slice(block.start, block.stop)
    raise ConfigError(
        f"these vectors have no {name!r} block",
        got=[block.name for block in blocks],
        expected=f"a block named {name!r}",
    )


def label_block(logits_NC: FloatArray, *, label_temperature: float) -> FloatArray:
    """Return sqrt(softmax(logits / tau)) as unit rows [N, C]; ConfigError unless tau > 0.

    >>> label_block(np.zeros((1, 4), np.float32), label_temperature=1.0).tolist()
    [[0.5, 0.5, 0.5, 0.5]]
    """
    if not label_temperature > 0.0:
        raise ConfigError(
            "the label temperature (tau) must be positive", got=label_temperature, expected="> 0"
        )
    # sqrt(softmax(x)) is exp(x / 2) over its own norm.
    half_NC = logits_NC.astype(np.float32) / np.float32(2.0 * label_temperature)
    half_NC -= half_NC.max(axis=1, keepdims=True, initial=-np.inf)
    np.exp(half_NC, out=half_NC)
    half_NC /= np.sqrt(np.einsum("nc,nc->n", half_NC, half_NC))[:, None]
    return half_NC
