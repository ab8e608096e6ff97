"""Flickr30k and Flickr8k by their token file (Young et al. 2014, Hodosh et al. 2013): five captions a picture.

    results_20130124.token (30k), Flickr8k.token.txt (8k)     <image>.jpg#<n> TAB <caption>
    flickr30k-images/, Flicker8k_Dataset/ (sic), images/      <image>.jpg
    Flickr_8k.trainImages.txt .devImages.txt .testImages.txt  an image a line (8k; for 30k any <..>train.txt and so on)

One name in Flickr8k's file ends in `.jpg.1`: it is the picture without the `.1`. Pictures in none of the split lists are
left out and counted; without lists no partition is known. Neither has classes: `data.caption_classes=coco` makes them
of the captions. An item's id is the picture's name without its extension.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePosixPath

from zscmr_ray.data.layouts.base import LayoutPlan, Listing, some
from zscmr_ray.data.records import LayoutRow
from zscmr_ray.schema import Partition

_FOLDERS = ("flickr30k-images", "flickr30k_images", "Flicker8k_Dataset", "Flickr8k_Dataset", "images", "")
_LINE = re.compile(r"(?P<name>[^#\t]+?)#(?P<number>\d+)\s+(?P<caption>.*)")
_SPLIT = re.compile(r"(?:^|[._])(?P<word>train|dev|val|test)(?:Images)?\.txt$")
_WORDS = {"train": Partition.TRAIN, "dev": Partition.VAL, "val": Partition.VAL, "test": Partition.TEST}


def plan_flickr(listing: Listing) -> LayoutPlan:
    """The pictures of the token file with their captions in order; raises DataError for a malformed line."""
    captions = _captions(listing)
    parts = _partitions(listing)
    folders = listing.image_folders(*_FOLDERS[:-1])
    rows: dict[str, list[LayoutRow]] = {}
    left_out: Counter[str] = Counter()
    for name, texts in captions.items():
        stem = PurePosixPath(name).stem
        partition = parts.get(stem)
        if parts and partition is None:
            left_out["in none of the split lists"] += 1
            continue
        group = partition.value if partition else "all"
        row = LayoutRow(
            id=stem,
            image=listing.image(name, folders=folders),
            captions=tuple(texts),
            partition=partition.value if partition else None,
        )
        rows.setdefault(group, []).append(row)
    remarks = () if parts else ("no split lists: partition by the id's hash",)
    return LayoutPlan(rows, left_out, remarks)


def _captions(listing: Listing) -> dict[str, list[str]]:
    keys = listing.matching(lambda name: name.endswith((".token", ".token.txt")) and ".lemma" not in name)
    if len(keys) != 1:
        raise listing.error(
            "no single token file",
            got=some(keys) if keys else listing.summary(),
            expected="one results*.token or Flickr8k.token.txt",
            remedy="move the other away" if keys else None,
        )
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(listing.lines(keys[0]), 1):
        match = _LINE.fullmatch(line)
        # A caption may be empty: its trailing tab is gone with the line's end.
        if match is None and not re.fullmatch(r"[^#\t]+#\d+", line):
            raise listing.error(
                f"{keys[0]}, line {number} is no caption",
                got=repr(line[:80]),
                expected="<image>.jpg#<n> TAB <caption>",
            )
        name = (match["name"] if match else line.rpartition("#")[0]).strip()
        texts = captions.setdefault(re.sub(r"\.jpg\.\d+$", ".jpg", name), [])
        texts.append(match["caption"] if match else "")
    return captions


def _partitions(listing: Listing) -> dict[str, Partition]:
    found: dict[str, Partition] = {}
    for key in listing.matching(lambda name: _SPLIT.search(name) is not None):
        match = _SPLIT.search(PurePosixPath(key).name)
        assert match is not None
        for line in listing.lines(key):
            found[re.sub(r"\.jpg$", "", line.strip())] = _WORDS[match["word"]]
    return found
