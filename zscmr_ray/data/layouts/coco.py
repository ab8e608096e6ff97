"""MSCOCO captions with the classes of the instances (Lin et al. 2014; Chen et al. 2015), 2014 and 2017.

    annotations/captions_<set>.json       {"images": [{id, file_name}], "annotations": [{image_id, caption}]}
    annotations/instances_<set>.json      {"annotations": [{image_id, category_id, area}], "categories": [{id, name}]}
    <set>/<file_name>                     train2017/000000391895.jpg, val2014/COCO_val2014_000000391895.jpg

An item's labels are the classes of its instances, the one that covers most of the picture first. Sets `train*` train and
sets `val*` test: the official test sets have no annotations. An item's id is the file's name without its extension.
`split.kind=coco_48_17` and `coco_65_15` are the no-leak class splits (`data/no_leak.py`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from zscmr_ray.data.layouts.base import LayoutPlan, Listing, some
from zscmr_ray.data.records import LayoutRow
from zscmr_ray.schema import Partition

_CAPTIONS, _INSTANCES = "captions_", "instances_"
_FIELDS = (
    "images",
    "annotations",
    "categories",
    "id",
    "file_name",
    "image_id",
    "caption",
    "category_id",
    "area",
    "name",
)


def plan_coco(listing: Listing) -> LayoutPlan:
    """The pictures of every captions file in the order of their ids; raises DataError for files that do not fit."""
    keys = listing.matching(lambda name: name.startswith(_CAPTIONS) and name.endswith(".json"))
    if not keys:
        raise listing.error(
            "no captions",
            got=listing.summary(),
            expected="annotations/captions_<set>.json (train2017, val2014 ...)",
        )
    rows, left_out = {}, Counter[str]()
    for key in keys:
        name = PurePosixPath(key).stem.removeprefix(_CAPTIONS)
        if name in rows:
            raise listing.error("two captions files of one set", got=some(keys), expected="one of each set")
        rows[name] = _rows(listing, key, name, left_out)
    return LayoutPlan(rows, left_out)


def read_classes(listing: Listing) -> dict[int, tuple[str, ...]]:
    """The classes of every picture that an instances file knows, by image id, the largest first (empty without files)."""
    found: dict[int, tuple[str, ...]] = {}
    for key in listing.matching(lambda name: name.startswith(_INSTANCES) and name.endswith(".json")):
        found |= _classes(listing, key)
    return found


def _rows(listing: Listing, key: str, name: str, left_out: Counter[str]) -> list[LayoutRow]:
    document = _document(listing, key, "images", "annotations")
    instances = str(PurePosixPath(key).with_name(f"{_INSTANCES}{name}.json"))
    if instances not in listing:
        raise listing.error(
            f"no {instances}", got=listing.summary(), expected="the instances of the captions' pictures"
        )
    classes = _classes(listing, instances)
    captions: dict[int, list[str]] = defaultdict(list)
    for annotation in document["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    images = sorted(document["images"], key=lambda image: int(image["id"]))
    strays = len(captions.keys() - {image["id"] for image in images})
    if strays:
        left_out[f"captions of {name} whose picture is not listed"] += strays
    partition = Partition.TRAIN if name.startswith("train") else Partition.TEST
    return [
        LayoutRow(
            id=PurePosixPath(image["file_name"]).stem,
            image=listing.image(image["file_name"], folders=(name, f"images/{name}", "images")),
            captions=tuple(captions.get(image["id"], ())),
            labels=classes.get(image["id"], ()),
            partition=partition.value,
        )
        for image in images
    ]


def _classes(listing: Listing, key: str) -> dict[int, tuple[str, ...]]:
    document = _document(listing, key, "annotations", "categories")
    # Ids go from 1 to 90 with gaps: they are names, not places.
    names: Mapping[int, str] = {one["id"]: one["name"] for one in document["categories"]}
    areas: dict[int, Counter[int]] = defaultdict(Counter)
    for annotation in document["annotations"]:
        if annotation["category_id"] not in names:
            raise listing.error(
                f"{key} has an instance of a category that it does not name",
                got=annotation["category_id"],
                expected=f"one of the {len(names)} ids in `categories`",
            )
        areas[annotation["image_id"]][annotation["category_id"]] += annotation.get("area", 0.0)
    return {
        image: tuple(names[number] for number, _ in sorted(own.items(), key=lambda one: (-one[1], one[0])))
        for image, own in areas.items()
    }


def _document(listing: Listing, key: str, *fields: str) -> Any:
    document = listing.json(key, keep=_FIELDS)
    missing = [name for name in fields if not isinstance(document, dict) or name not in document]
    if missing:
        got = sorted(document) if isinstance(document, dict) else type(document).__name__
        raise listing.error(f"{key} has no {' and no '.join(missing)}", got=got, expected=", ".join(fields))
    return document
