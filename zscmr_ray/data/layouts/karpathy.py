"""The splits of Karpathy and Fei-Fei (2015): `dataset_coco.json`, `dataset_flickr30k.json`, `dataset_flickr8k.json`.

    dataset_<name>.json     {"images": [{filename, filepath?, cocoid?, split, sentences: [{raw}]}], "dataset": <name>}
    images/, flickr30k-images/, Flicker8k_Dataset/, train2014/, val2014/

`restval` trains with `train`, as in the literature. COCO's pictures get the classes of annotations/instances_*.json
where these are there; Flickr's have none (`data.caption_classes=coco`). An item's id is the file's name without its
extension.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from zscmr_ray.data.layouts.base import LayoutPlan, Listing, some
from zscmr_ray.data.layouts.coco import read_classes
from zscmr_ray.data.records import LayoutRow
from zscmr_ray.schema import Partition

_FOLDERS = ("images", "flickr30k-images", "flickr30k_images", "Flicker8k_Dataset", "Flickr8k_Dataset")
_FIELDS = ("images", "dataset", "filename", "filepath", "cocoid", "split", "sentences", "raw")
_SPLITS = {
    "train": Partition.TRAIN,
    "restval": Partition.TRAIN,
    "val": Partition.VAL,
    "test": Partition.TEST,
}


def plan_karpathy(listing: Listing) -> LayoutPlan:
    """The pictures of the one dataset_*.json; raises DataError for several, or a picture without name or split."""
    keys = listing.matching(lambda name: name.startswith("dataset_") and name.endswith(".json"))
    if len(keys) != 1:
        raise listing.error(
            "no single dataset_*.json",
            got=some(keys) if keys else listing.summary(),
            expected="one of dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json",
            remedy="move the others away" if keys else None,
        )
    document = listing.json(keys[0], keep=_FIELDS)
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise listing.error(
            f"{keys[0]} has no images", got=type(document).__name__, expected='{"images": [...]}'
        )
    classes = read_classes(listing)
    folders = listing.image_folders(*_FOLDERS)
    rows: dict[str, list[LayoutRow]] = {}
    for number, image in enumerate(document["images"]):
        partition = _SPLITS.get(str(image.get("split")))
        if partition is None or not image.get("filename"):
            raise listing.error(
                f"{keys[0]}: picture {number} has no file name or split",
                got={name: image.get(name) for name in ("filename", "split")},
                expected=f"a filename, and a split of {', '.join(_SPLITS)}",
            )
        row = LayoutRow(
            id=PurePosixPath(image["filename"]).stem,
            image=_image(listing, image, folders),
            captions=tuple(sentence["raw"] for sentence in image.get("sentences", ())),
            labels=classes.get(image.get("cocoid", -1), ()),
            partition=partition.value,
        )
        rows.setdefault(partition.value, []).append(row)
    return LayoutPlan(rows)


def _image(listing: Listing, image: dict[str, Any], folders: tuple[str, ...]) -> str:
    own = image.get("filepath")
    places = (own, *(f"{folder}/{own}" for folder in folders)) if own else folders
    return listing.image(image["filename"], folders=(*places, ""))
