"""NUS-WIDE (Chua et al. 2009) and the subset of ten classes that retrieval papers use (NUS-WIDE-10k; Feng et al. 2014).

    ImageList/Imagelist.txt  TrainImagelist.txt  TestImagelist.txt     <concept>\\<number>_<photo>.jpg, Windows paths
    Concepts81.txt                                                     a class a line
    Groundtruth/AllLabels/Labels_<class>.txt                           0 or 1 a line, in Imagelist's order
    NUS_WID_Tags/All_Tags.txt                                          <photo>   tag tag tag, in Imagelist's order
    Flickr/<concept>/<number>_<photo>.jpg                              (or images/)

Folders of lists may be nested, as the archives unpack. A picture's caption is its tags. `nuswide10k` takes the pictures
with exactly one of the ten classes and that class alone as label; its 1,000 a class are drawn by
`data.max_items_per_class=1000` (the list of the papers' 10,000 is not published). An item's id is `<number>_<photo>`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from zscmr_ray.data.layouts.base import LayoutPlan, Listing
from zscmr_ray.data.records import LayoutRow
from zscmr_ray.schema import Partition

TEN_CLASSES = ("animal", "clouds", "flowers", "food", "grass", "person", "sky", "toy", "water", "window")
_IMAGE_FOLDERS = ("Flickr", "images")


def plan_nuswide(listing: Listing) -> LayoutPlan:
    """All pictures with all of their classes; raises DataError for lists that are missing or differ in length."""
    return _plan(listing, None)


def plan_nuswide10k(listing: Listing) -> LayoutPlan:
    """The pictures with exactly one of the ten classes; how many were left out is counted by reason."""
    return _plan(listing, TEN_CLASSES)


def _plan(listing: Listing, chosen: Collection[str] | None) -> LayoutPlan:
    names = [_posix(line) for line in listing.lines(listing.one("Imagelist.txt"))]
    labels = _labels(listing, len(names))
    tags = _tags(listing, names)
    parts = {
        PurePosixPath(_posix(line)).name: partition
        for name, partition in (
            ("TrainImagelist.txt", Partition.TRAIN),
            ("TestImagelist.txt", Partition.TEST),
        )
        for line in listing.lines(listing.one(name))
    }
    folders = listing.image_folders(*_IMAGE_FOLDERS)
    rows: dict[str, list[LayoutRow]] = {}
    left_out: Counter[str] = Counter()
    for name, own, text in zip(names, labels, tags, strict=True):
        partition = parts.get(PurePosixPath(name).name)
        if partition is None:
            left_out["in neither TrainImagelist nor TestImagelist"] += 1
            continue
        if chosen is not None:
            own = [label for label in own if label in chosen]
            if len(own) != 1:
                left_out["none of the ten classes" if not own else "several of the ten classes"] += 1
                continue
        row = LayoutRow(
            id=PurePosixPath(name).stem,
            image=listing.image(name, folders=folders),
            captions=(text,),
            labels=tuple(own),
            partition=partition.value,
        )
        rows.setdefault(partition.value, []).append(row)
    return LayoutPlan(rows, left_out)


def _posix(line: str) -> str:
    return line.strip().replace("\\", "/")


def _labels(listing: Listing, num_images: int) -> list[list[str]]:
    """The classes of each picture, in the order of Concepts81."""
    found: list[list[str]] = [[] for _ in range(num_images)]
    for concept in (line.strip() for line in listing.lines(listing.one("Concepts81.txt"))):
        key = listing.one(f"Labels_{concept}.txt")
        marks = listing.lines(key)
        if len(marks) != num_images or not {mark.strip() for mark in marks} <= {"0", "1"}:
            raise listing.error(
                f"{key} does not fit Imagelist.txt",
                got=f"{len(marks)} lines",
                expected=f"{num_images} lines of 0 or 1",
            )
        for row, mark in enumerate(marks):
            if mark.strip() == "1":
                found[row].append(concept)
    return found


def _tags(listing: Listing, names: Sequence[str]) -> list[str]:
    """The tags of each picture as one text; a picture without any has an empty one, and its row is rejected."""
    key = listing.one("All_Tags.txt")
    by_photo: dict[str, str] = {}
    for line in listing.lines(key):
        photo, _, tags = re.sub(r"\s+", " ", line.strip()).partition(" ")
        by_photo.setdefault(photo, tags)
    texts = [by_photo.get(PurePosixPath(name).stem.rpartition("_")[2]) for name in names]
    if names and not any(text is not None for text in texts):
        raise listing.error(
            f"{key} knows none of the pictures of Imagelist.txt",
            got=f"{len(by_photo)} photos, the first {next(iter(by_photo), 'none')}",
            expected=f"<photo> tags, as {PurePosixPath(names[0]).stem.rpartition('_')[2]}",
        )
    return [text or "" for text in texts]
