"""Datasets as their users have them on disk: a table of layouts, each one file that turns lists into rows.

`plan_layout` runs in the driver and reads lists and annotations; `read_layout` runs in workers and reads pictures and
texts. From shards of rows on, everything is as for any other input. docs/datasets.md shows each layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from zscmr_ray.data.layouts.base import LayoutPlan, Listing, cut_shards
from zscmr_ray.data.layouts.coco import plan_coco
from zscmr_ray.data.layouts.flickr import plan_flickr
from zscmr_ray.data.layouts.karpathy import plan_karpathy
from zscmr_ray.data.layouts.nuswide import plan_nuswide, plan_nuswide10k
from zscmr_ray.data.layouts.pascal_sentence import plan_pascal_sentence
from zscmr_ray.data.layouts.reading import read_layout
from zscmr_ray.data.layouts.wikipedia import plan_wikipedia
from zscmr_ray.data.layouts.wikipedia_features import plan_wikipedia_features
from zscmr_ray.data.layouts.xmedia import plan_xmedia
from zscmr_ray.data.records import OpenFile, ShardSpec
from zscmr_ray.storage import FileInfo

__all__ = ["LAYOUTS", "LayoutPlan", "plan_layout", "read_layout"]

LAYOUTS: dict[str, Callable[[Listing], LayoutPlan]] = {
    "wikipedia": plan_wikipedia,
    "wikipedia_features": plan_wikipedia_features,
    "pascal_sentence": plan_pascal_sentence,
    "xmedia": plan_xmedia,
    "nuswide": plan_nuswide,
    "nuswide10k": plan_nuswide10k,
    "coco": plan_coco,
    "karpathy": plan_karpathy,
    "flickr": plan_flickr,
}


def plan_layout(
    name: str, files: Iterable[FileInfo], open_file: OpenFile
) -> tuple[list[ShardSpec], LayoutPlan]:
    """Read a dataset's lists and cut its rows into shards. Raises DataError for a folder that is not in this layout."""
    listing = Listing(name, files, open_file)
    plan = LAYOUTS[name](listing)
    return cut_shards(plan, listing), plan
