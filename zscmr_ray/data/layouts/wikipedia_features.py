"""Wikipedia (SVCL) at feature level: `raw_features.mat` beside the lists, no pictures needed (SCIENCE 8).

    raw_features.mat    I_tr [2173, 128], I_te [693, 128]   histograms of 128 SIFT words
                        T_tr [2173, 10], T_te [693, 10]     an LDA of ten topics

Row n belongs to line n of the list. The published rows of the literature use stronger features.
"""

from __future__ import annotations

from zscmr_ray.data.layouts.base import LayoutPlan, Listing
from zscmr_ray.data.layouts.wikipedia import CATEGORIES, LISTS, listed_pairs
from zscmr_ray.data.records import LayoutRow
from zscmr_ray.schema import Partition

FEATURES = "raw_features.mat"
IMAGE_CHANNELS, TEXT_CHANNELS = 128, 10


def plan_wikipedia_features(listing: Listing) -> LayoutPlan:
    """A row for each line of the lists, in their order; raises DataError without the lists or the features."""
    listing.at_root(FEATURES)
    categories = [line.strip() for line in listing.lines(listing.at_root(CATEGORIES))]
    rows = {
        partition.value: [
            _row(listing, text, label, partition)
            for text, _, label in listed_pairs(listing, name, categories)
        ]
        for partition, name in LISTS.items()
    }
    return LayoutPlan(rows)


def _row(listing: Listing, text: str, label: str, partition: Partition) -> LayoutRow:
    key = f"texts/{text}.xml"
    # The texts are for people to read; without them a row shows its name.
    shown = {"text": key} if key in listing else {"captions": (text,)}
    return LayoutRow(id=text, labels=(label,), partition=partition.value, **shown)


def matrix_names(partition: str) -> tuple[str, str]:
    """The matrices of a partition's image and text features."""
    suffix = {"train": "tr", "test": "te"}[partition]
    return f"I_{suffix}", f"T_{suffix}"
