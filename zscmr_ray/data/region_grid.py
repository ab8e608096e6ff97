"""Cached feature maps made coarser: 7 x 7 regions pooled to 4 x 4, as the image backbone itself would have.

What it is: the same adaptive average pooling as `models/backbones/base.py`, on cached float16 regions, in blocks of rows.
What it is not: a way to finer maps: what was not cached is not there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from zscmr_ray.errors import DataError

_BLOCK_ROWS = 256

Half = npt.NDArray[np.float16]


def pool_regions(regions_NRD: Half, region_grid: int | None) -> Half:
    """Return the maps at `region_grid` x `region_grid` regions, row-major; None or their own grid = as they are.

    Raises DataError for a finer grid than the cached one, or maps that are no square.

    >>> maps = np.arange(4, dtype=np.float16).reshape(1, 4, 1)
    >>> pool_regions(maps, 1).tolist()
    [[[1.5]]]
    """
    num_regions = regions_NRD.shape[1]
    if region_grid is None or num_regions == region_grid**2:
        return regions_NRD
    side = round(num_regions**0.5)
    if side * side != num_regions or region_grid > side:
        raise DataError(
            "cached image features cannot be pooled to this grid",
            got=f"{num_regions} cached regions, model.region_grid={region_grid}",
            expected=f"a grid of at most {side} x {side}",
            remedy="lower model.region_grid, or preprocess with a larger preprocess.region_grid",
        )
    count, _, channels = regions_NRD.shape
    pooled_NRD = np.empty((count, region_grid**2, channels), np.float16)
    for start in range(0, count, _BLOCK_ROWS):
        block_BRD = torch.from_numpy(regions_NRD[start : start + _BLOCK_ROWS].astype(np.float32))
        maps_BDhw = block_BRD.transpose(1, 2).reshape(len(block_BRD), channels, side, side)
        small_BRD = F.adaptive_avg_pool2d(maps_BDhw, region_grid).flatten(2).transpose(1, 2)
        pooled_NRD[start : start + _BLOCK_ROWS] = small_BRD.numpy()
    return pooled_NRD
