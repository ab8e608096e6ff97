"""Part weights: the part that knows the classes gets the weight, the one that does not loses it, whatever the start."""

from __future__ import annotations

import numpy as np
import pytest

from zscmr_ray.retrieval.part_weights import PartFold, choose_part_weights
from zscmr_ray.retrieval.searches import Corpus


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_fold(seed: int, *, noise: float) -> PartFold:
    """Two parts: `told` knows the class up to noise, `noise` nothing; 6 classes of 20 items, one caption each."""
    rng = np.random.default_rng(seed)
    labels = [f"class {n % 6}" for n in range(120)]
    centres = rng.normal(size=(6, 8))[[n % 6 for n in range(120)]]
    made = [unit(centres + noise * rng.normal(size=(120, 8))) for _ in range(2)]
    random = [unit(rng.normal(size=(120, 8))) for _ in range(2)]
    corpus = Corpus(
        [f"item {n}" for n in range(120)], [(name,) for name in labels], np.full(120, "train"), np.arange(120)
    )
    return PartFold(
        image={"told": made[0], "noise": random[0]},
        text={"told": made[1], "noise": random[1]},
        corpus=corpus,
        classes=tuple(sorted(set(labels))),
        query_items=np.arange(0, 120, 5),
        gallery_items=np.flatnonzero(np.arange(120) % 5),
    )


@pytest.mark.parametrize("start", [{"told": 1.0, "noise": 1.0}, {"told": 0.25, "noise": 1.0}])
def test_the_weight_goes_to_what_knows_the_classes(start: dict[str, float]) -> None:
    folds = [make_fold(seed, noise=0.7) for seed in (0, 1)]
    weights, score = choose_part_weights(folds, start=start)
    assert weights["told"] == 1.0
    assert weights["noise"] <= 0.25
    assert score > 0.5


def test_a_start_that_nothing_improves_is_kept() -> None:
    fold = make_fold(0, noise=0.0)
    weights, score = choose_part_weights([fold], start={"told": 1.0, "noise": 0.0})
    assert weights == {"told": 1.0, "noise": 0.0}
    assert score == pytest.approx(1.0)
