"""Wikipedia (SVCL, Rasiwasia et al. 2010): 2,866 sections of featured articles, each with its picture; 10 classes.

    images/<category>/<image>.jpg
    texts/<text>.xml                  <document ...><text> ... </text><imageset>...
    categories.list                   a class a line
    trainset_txt_img_cat.list         <text> TAB <image> TAB <category, from 1>    2,173 lines
    testset_txt_img_cat.list          693 lines

An item's id is its text's name.
"""

from __future__ import annotations

from zscmr_ray.data.layouts.base import LayoutPlan, Listing, images_below
from zscmr_ray.data.records import LayoutRow
from zscmr_ray.schema import Partition

LISTS = {
    Partition.TRAIN: "trainset_txt_img_cat.list",
    Partition.TEST: "testset_txt_img_cat.list",
}
CATEGORIES = "categories.list"


def plan_wikipedia(listing: Listing) -> LayoutPlan:
    """The rows of both lists; raises DataError for a missing list, a malformed line or an unknown category."""
    categories = [line.strip() for line in listing.lines(listing.at_root(CATEGORIES))]
    images = images_below(listing, "images")
    rows = {}
    for partition, name in LISTS.items():
        rows[f"{partition.value}set"] = [
            _row(text, image, label, partition, images)
            for text, image, label in listed_pairs(listing, name, categories)
        ]
    return LayoutPlan(rows)


def listed_pairs(listing: Listing, name: str, categories: list[str]) -> list[tuple[str, str, str]]:
    """The (text, image, class) of each line of a list, in its order."""
    pairs = []
    for number, line in enumerate(listing.lines(listing.at_root(name)), 1):
        fields = line.split("\t") if "\t" in line else line.split()
        category = fields[-1].strip()
        if len(fields) != 3 or not category.isdigit() or not 1 <= int(category) <= len(categories):
            raise listing.error(
                f"{name}, line {number} is no text, image and category",
                got=repr(line),
                expected=f"three fields with tabs, the category 1 to {len(categories)}",
            )
        pairs.append((fields[0].strip(), fields[1].strip(), categories[int(category) - 1]))
    return pairs


def _row(text: str, image: str, label: str, partition: Partition, images: dict[str, str]) -> LayoutRow:
    place = f"{label}/{image}"
    return LayoutRow(
        id=text,
        image=images.get(place, f"images/{place}.jpg"),
        text=f"texts/{text}.xml",
        labels=(label,),
        partition=partition.value,
    )
