"""Pooling cached maps: the backbone's own pooling, its refusals, and nothing to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zscmr_ray.data.region_grid import pool_regions
from zscmr_ray.errors import DataError
from zscmr_ray.models.backbones import load_image_backbone


def maps(count: int = 3, side: int = 7, channels: int = 5) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, side * side, channels)).astype(np.float16)


def test_it_is_the_mean_over_overlapping_windows() -> None:
    cached = maps(count=300)
    pooled = pool_regions(cached, 4)
    grid = cached.reshape(300, 7, 7, 5).astype(np.float64)
    windows = [(0, 2), (1, 4), (3, 6), (5, 7)]
    for row, (top, bottom) in enumerate(windows):
        for column, (left, right) in enumerate(windows):
            wanted = grid[:, top:bottom, left:right].mean((1, 2))
            assert np.allclose(pooled[:, 4 * row + column], wanted, atol=2e-3)
    assert pooled.dtype == np.float16


def test_cached_maps_pooled_are_what_the_backbone_gives_at_that_grid() -> None:
    backbone = load_image_backbone("tiny")
    size = backbone.spec.size_px
    pixels = torch.randint(0, 255, (2, size, size, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    whole, coarse = (
        backbone(pixels, region_grid=grid).regions_BRD.numpy().astype(np.float16)
        for grid in (backbone.native_grid, 2)
    )
    assert np.allclose(pool_regions(whole, 2), coarse, atol=2e-3)


@pytest.mark.parametrize("grid", [None, 7])
def test_their_own_grid_costs_nothing(grid: int | None) -> None:
    cached = maps()
    assert pool_regions(cached, grid) is cached


def test_a_finer_grid_and_what_is_no_square_are_refused() -> None:
    with pytest.raises(DataError, match="at most 7 x 7"):
        pool_regions(maps(), 8)
    with pytest.raises(DataError, match="6 cached regions"):
        pool_regions(maps()[:, :6], 2)
