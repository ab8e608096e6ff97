"""XMedia and XMediaNet (PKU; Zhai, Peng, Xiao 2014 and Peng, Huang, Qi 2016): pictures and texts of 20 and 200 classes.

    images/<class>/<image>.jpg
    texts/<class>/<text>.txt (or .xml)
    train*.txt test*.txt val*.txt     (or .list; at the root or in list/ or lists/)

The data are given out on request, and the names of the list files are not published: any of these is read. A line names
a text and a picture in either order, by path or name, with the class number or name after them or not; or else lists
come in twos, the name of one with `txt` or `text` in it and that of the other with `img` or `image`, line by line a
pair. Without lists, a text and a picture of one class with one name are a pair, and no partition is known.
Video, audio and 3D models are not read. An item's id is `<class>/<text>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from zscmr_ray.data.layouts.base import LayoutPlan, Listing, images_below
from zscmr_ray.data.records import LayoutRow
from zscmr_ray.schema import Partition

_FOLDERS = ("", "list", "lists")
_FIELDS = re.compile(r"[\t ,]+")
_WORDS = {"train": Partition.TRAIN, "val": Partition.VAL, "test": Partition.TEST}


def plan_xmedia(listing: Listing) -> LayoutPlan:
    """The pairs of the lists, or of equal names; raises DataError for a line that names no text and no picture."""
    images, texts = _Known(images_below(listing, "images")), _Known(_texts(listing))
    if not images.keys and not texts.keys:
        raise listing.error(
            "no classes", got=listing.summary(), expected="images/<class>/.. and texts/<class>/.."
        )
    lists = {key: part for key in listing.files if (part := _partition(key)) is not None}
    if not lists:
        rows = [
            _row(name, name, images, texts, None) for name in sorted(images.keys.keys() | texts.keys.keys())
        ]
        return LayoutPlan(
            {"pairs": rows}, remarks=("no list files: pairs by name, partition by the id's hash",)
        )
    rows_of: dict[str, list[LayoutRow]] = {}
    for partition in Partition:
        keys = sorted(key for key, part in lists.items() if part is partition)
        pairs = _pairs(listing, keys, images, texts)
        if pairs:
            rows_of[partition.value] = [_row(text, image, images, texts, partition) for text, image in pairs]
    return LayoutPlan(rows_of)


def _texts(listing: Listing) -> dict[str, str]:
    keys = (key for key in listing.below("texts") if key.lower().endswith((".txt", ".xml")))
    return {str(PurePosixPath(key).relative_to("texts").with_suffix("")): key for key in keys}


def _partition(key: str) -> Partition | None:
    path = PurePosixPath(key)
    if str(path.parent).removeprefix(".") not in _FOLDERS or path.suffix not in {".txt", ".list"}:
        return None
    found = [part for word, part in _WORDS.items() if word in path.stem.lower()]
    return found[0] if len(found) == 1 else None


def _pairs(listing: Listing, keys: list[str], images: _Known, texts: _Known) -> list[tuple[str, str]]:
    """The (text, image) names of the lists of one partition."""
    lines = {key: listing.lines(key) for key in keys}
    halves = {
        side: [key for key in keys if any(word in PurePosixPath(key).stem.lower() for word in words)]
        for side, words in (("text", ("txt", "text")), ("image", ("img", "image")))
    }
    if (
        len(halves["text"]) == len(halves["image"]) == 1
        and halves["text"] != halves["image"]
        and len(keys) == 2
    ):
        text_lines, image_lines = lines[halves["text"][0]], lines[halves["image"][0]]
        if len(text_lines) != len(image_lines):
            raise listing.error(
                "the lists of texts and of pictures differ in length",
                got=f"{len(text_lines)} and {len(image_lines)} lines in {' and '.join(keys)}",
                expected="a picture for each text, line by line",
            )
        joined = [f"{text}\t{image}" for text, image in zip(text_lines, image_lines, strict=True)]
        return [_pair(listing, line, keys[0], images, texts) for line in joined]
    return [_pair(listing, line, key, images, texts) for key in keys for line in lines[key]]


def _pair(listing: Listing, line: str, key: str, images: _Known, texts: _Known) -> tuple[str, str]:
    names = [_name(field) for field in _FIELDS.split(line.strip().replace("\\", "/"))]
    text = next((found for name in names[:2] for found in [texts.find(name)] if found), None)
    image = next((found for name in reversed(names[:2]) for found in [images.find(name)] if found), None)
    if text is None and image is None:
        raise listing.error(
            f"a line of {key} names neither a text nor a picture that is there",
            got=repr(line),
            expected="<text> <image> [<class>]",
        )
    # The half that is not there keeps its listed name, so that the row is rejected under it.
    place = str(PurePosixPath(text or image or "").parent)
    other = next((name for name in names[:2] if (images if text else texts).find(name) is None), names[0])
    missing = other if "/" in other else f"{place}/{other}"
    return text or missing, image or missing


def _name(field: str) -> str:
    path = re.sub(r"^(?:\./)?(?:images?|texts?)/", "", field)
    return re.sub(r"\.(?:jpe?g|png|txt|xml)$", "", path, flags=re.IGNORECASE)


class _Known:
    """The items of one medium, found by path, or by file name where only one class has it."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self.keys = keys
        self._by_name: dict[str, list[str]] = {}
        for path in keys:
            self._by_name.setdefault(path.rpartition("/")[2], []).append(path)

    def find(self, name: str) -> str | None:
        if name in self.keys:
            return name
        found = self._by_name.get(name, [])
        return found[0] if len(found) == 1 else None


def _row(text: str, image: str, images: _Known, texts: _Known, partition: Partition | None) -> LayoutRow:
    labels = tuple(dict.fromkeys(name.split("/")[0] for name in (text, image) if "/" in name))
    return LayoutRow(
        id=text,
        image=images.keys.get(image, f"images/{image}.jpg"),
        text=texts.keys.get(text, f"texts/{text}.txt"),
        labels=labels,
        partition=partition.value if partition else None,
    )
