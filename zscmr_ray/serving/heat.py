"""Where in an item's picture its region weights lie: what a heat map is drawn from, by the page or anyone.

What it is: the weights that embed kept, as a grid, and the part of the thumbnail that the grid covers. What it is not: a
picture (stages/report/pictures.py draws those of the report).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from zscmr_ray.retrieval.gallery import Gallery
from zscmr_ray.retrieval.side_index import SideIndex
from zscmr_ray.serving.wire import ItemRegions


def item_regions(images: Gallery | SideIndex, row: int, crop: Mapping[str, Any] | None) -> ItemRegions | None:
    """An image row's weights, or None where the index keeps none, knows no `crop`, or holds no picture of it."""
    weights_NR = images.regions.weights_NR
    thumbnail = images.thumbnail_of(row)
    if weights_NR is None or crop is None or thumbnail is None:
        return None
    grid = round(weights_NR.shape[1] ** 0.5)
    weights_R = weights_NR[row].astype(float)
    if grid * grid != len(weights_R):
        return None
    with Image.open(io.BytesIO(thumbnail)) as opened:
        width, height = opened.size
    return ItemRegions(
        weights=[weights_R[start : start + grid].tolist() for start in range(0, grid * grid, grid)],
        box=seen_box(width, height, fit=str(crop["fit"]), fraction=float(crop["fraction"])),
    )


def seen_box(width: int, height: int, *, fit: str, fraction: float) -> list[float]:
    """Left, top, right and bottom of what the model sees of a picture, as shares of its width and height.

    >>> seen_box(200, 100, fit="crop", fraction=0.5)
    [0.375, 0.25, 0.625, 0.75]
    """
    if fit != "crop":
        return [0.0, 0.0, 1.0, 1.0]
    side = fraction * min(width, height)
    left, top = (1 - side / width) / 2, (1 - side / height) / 2
    return [left, top, 1 - left, 1 - top]
