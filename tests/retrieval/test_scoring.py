"""The fused score: one inner product equals the weighted sum of its two terms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from zscmr_ray.errors import ConfigError
from zscmr_ray.retrieval.scoring import block_columns, label_block, weigh_query


@dataclass(frozen=True)
class Part:
    name: str
    start: int
    stop: int


PARTS = (Part("region", 0, 3), Part("label", 3, 8))


def test_fused_score_is_the_weighted_sum() -> None:
    rng = np.random.default_rng(0)
    region = rng.standard_normal((2, 4, 3)).astype(np.float32)
    region /= np.linalg.norm(region, axis=2, keepdims=True)
    logits = rng.standard_normal((2, 4, 5)).astype(np.float32)
    label = np.stack([label_block(side, label_temperature=0.5) for side in logits])
    query, gallery = np.concatenate([region, label], axis=2)
    fused = weigh_query(query, PARTS, label_weight=0.3) @ gallery.T
    for row in range(4):
        for column in range(4):
            p, q = (
                np.exp(side / 0.5) / np.exp(side / 0.5).sum() for side in (logits[0, row], logits[1, column])
            )
            expected = 0.7 * region[0, row] @ region[1, column] + 0.3 * np.sqrt(p * q).sum()
            assert fused[row, column] == pytest.approx(expected, abs=1e-5)


def test_weighing_leaves_the_given_vectors_alone() -> None:
    vectors = np.ones((1, 8), np.float32)
    weigh_query(vectors, PARTS, label_weight=1.0)
    assert vectors.tolist() == [[1.0] * 8]


def test_label_block_survives_huge_logits_and_no_rows() -> None:
    found = label_block(np.array([[3e4, -3e4, 0.0]], np.float32), label_temperature=0.01)
    assert found.tolist() == [[1.0, 0.0, 0.0]]
    assert label_block(np.zeros((0, 3), np.float32), label_temperature=1.0).shape == (0, 3)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        weigh_query(np.ones((1, 8), np.float32), PARTS, label_weight=weight)


def test_labels_cannot_be_weighed_where_there_are_none() -> None:
    region_only = PARTS[:1]
    assert weigh_query(np.ones((1, 3), np.float32), region_only, label_weight=0.0).tolist() == [[1.0] * 3]
    with pytest.raises(ConfigError, match="no label distribution"):
        weigh_query(np.ones((1, 3), np.float32), region_only, label_weight=0.5)
    with pytest.raises(ConfigError, match="'label'"):
        block_columns(region_only, "label")
    with pytest.raises(ConfigError, match="must be positive"):
        label_block(np.ones((1, 3), np.float32), label_temperature=0.0)
