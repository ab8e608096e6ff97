"""Tiny datasets in their official on-disk layouts, oddities included; the pictures are real JPEGs of 48 x 40."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from zscmr_ray.data.layouts import plan_layout, read_layout
from zscmr_ray.data.layouts.base import LayoutPlan
from zscmr_ray.data.records import Columns, Record, Reject
from zscmr_ray.storage import Store

Files = dict[str, bytes | str]


def jpeg(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((48, 40)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for key, data in files.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def read(
    folder: Path, name: str, columns: Columns | None = None
) -> tuple[dict[str, Record], list[Reject], LayoutPlan]:
    """Records by id, rejects in order, and the plan."""
    store = Store(folder)
    specs, plan = plan_layout(name, store.list(), store.open)
    rows = [row for spec in specs for row in read_layout(spec, store.open, columns or Columns())]
    assert len(rows) == plan.num_rows
    records = {row.id or "": row for row in rows if isinstance(row, Record)}
    return records, [row for row in rows if isinstance(row, Reject)], plan


def section(text: str, number: int) -> str:
    return (
        f'<document id="t{number}-1" name="Some_Article" cat="3">\n<text>\n{text}\n</text>\n<imageset>\n'
        f'<image id="i{number}" name="A_Picture" sectnum="2#1">../img/i{number}.jpg</image>\n</imageset>\n</document>'
    )


def wikipedia() -> Files:
    """Eight pairs of two classes; bare ampersands, an undefined entity, Latin-1, CRLF lists, and three that are bad."""
    texts: list[bytes] = [
        section("A duchy &ndash; and R&B &times; 2, see http://x.org/?a=1&sect=2.", 0).encode(),
        section("Plain words <i>about</i> it.", 1).encode(),
        section("Café society", 2).encode("latin-1"),
        section("A section\nof two lines.", 3).encode(),
        section("No picture of this", 4).encode(),
        b'<document id="t5-1" name="Torn"><text>\nends before its',
        section("Test one", 6).encode(),
        section("Test two", 7).encode(),
    ]
    lines = [f"t{number}-1\ti{number}\t{1 + number % 2}" for number in range(8)]
    files: Files = {
        "categories.list": "art\r\nbiology \r\n",
        "trainset_txt_img_cat.list": "\r\n".join([*lines[:6], "t8-1\ti8\t1"]) + "\r\n",
        "testset_txt_img_cat.list": "\n".join(line + " " for line in lines[6:]) + "\n",
    }
    files |= {f"texts/t{number}-1.xml": text for number, text in enumerate(texts)}
    for number in (0, 1, 2, 3, 5, 6, 7, 8):
        files[f"images/{('art', 'biology')[number % 2]}/i{number}.jpg"] = jpeg(number)
    return files


def pascal_sentence(per_class: int = 10) -> Files:
    files: Files = {}
    for label in ("aeroplane", "diningtable"):
        for number in range(per_class):
            name = f"{label}/2008_{number:06d}"
            files[f"dataset/{name}.jpg"] = jpeg(number)
            lines = [f"Sentence {n} of {label} {number}." for n in range(5)]
            files[f"sentence/{name}.txt"] = "\r\n".join(lines) + "\r\n"
    return files


def xmedia() -> Files:
    files: Files = {}
    for label in ("insect", "bird"):
        for number in range(3):
            files[f"images/{label}/{label}_{number}.jpg"] = jpeg(number)
            files[f"texts/{label}/{number}_{label}.txt"] = f"about the {label} {number}\nin two lines"
    return files


def nuswide() -> Files:
    names = [
        f"{concept}\\{number:04d}_{photo}.jpg"
        for number, (concept, photo) in enumerate(
            [("actor", 21), ("sky", 22), ("zebra", 23), ("toys", 24), ("food", 25)]
        )
    ]
    marks = {"animal": "00100", "food": "00001", "sky": "11000", "person": "10000", "tower": "00010"}
    tags = [
        f"{photo}      {text} "
        for photo, text in zip(range(21, 26), ("a b", "blue sky", "", "red toy", "soup"), strict=True)
    ]
    files: Files = {
        "ImageList/ImageList/Imagelist.txt": "\r\n".join(f"{name} " for name in names) + "\r\n",
        "ImageList/ImageList/TrainImagelist.txt": "\r\n".join(names[:3]) + "\r\n",
        "ImageList/ImageList/TestImagelist.txt": "\r\n".join(names[3:]) + "\r\n",
        "Concepts81.txt": "\n".join(marks) + "\n",
        "NUS_WID_Tags/All_Tags.txt": "\n".join(tags) + "\n",
    }
    for concept, own in marks.items():
        files[f"Groundtruth/AllLabels/Labels_{concept}.txt"] = "\n".join(own) + "\n"
    for name in names[:4]:
        files["Flickr/" + name.replace("\\", "/")] = jpeg(len(files))
    return files


CATEGORIES = {1: "person", 3: "car", 17: "cat", 18: "dog", 61: "cake", 67: "dining table"}


def coco_annotations(
    images: Mapping[int, tuple[list[tuple[int, float]], list[str]]], name: str, file_name: str = "{:012d}.jpg"
) -> Files:
    """The two JSON files of a set from {image id: (instances as (category, area), captions)}."""
    listed = [
        {"license": 3, "file_name": file_name.format(number), "height": 40, "width": 48, "id": number}
        for number in sorted(images, reverse=True)
    ]
    boxes = [(number, *one) for number, (own, _) in images.items() for one in own]
    texts = [(number, text) for number, (_, own) in images.items() for text in own]
    instances = {
        "info": {"year": 2017},
        "images": listed,
        "annotations": [
            {
                "segmentation": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]],
                "area": area,
                "iscrowd": 0,
                "image_id": image,
                "bbox": [0, 0, 1, 1],
                "category_id": category,
                "id": number,
            }
            for number, (image, category, area) in enumerate(boxes)
        ],
        "categories": [
            {"supercategory": "x", "id": number, "name": text} for number, text in CATEGORIES.items()
        ],
    }
    captions = {
        "info": {"year": 2017},
        "images": listed,
        "annotations": [
            {"image_id": image, "id": n, "caption": text} for n, (image, text) in enumerate(texts)
        ],
    }
    return {
        f"annotations/instances_{name}.json": json.dumps(instances),
        f"annotations/captions_{name}.json": json.dumps(captions),
    }


def coco() -> Files:
    train: dict[int, tuple[list[tuple[int, float]], list[str]]] = {
        9: ([(1, 50.0), (3, 80.0)], ["A car and a man. ", "Someone drives"]),
        25: ([(18, 10.0), (18, 95.0), (1, 100.0)], ["A dog walks its owner"]),
        30: ([], ["Nothing is annotated here\n"]),
        42: ([(61, 5.0)], []),
    }
    val: dict[int, tuple[list[tuple[int, float]], list[str]]] = {
        139: ([(17, 7.0), (67, 6.5)], ["A cat on a table"]),
        285: ([(3, 1.0)], ["A red car"]),
    }
    files = coco_annotations(train, "train2017") | coco_annotations(val, "val2017")
    for number, folder in ((9, "train"), (25, "train"), (30, "train"), (42, "train"), (139, "val")):
        files[f"{folder}2017/{number:012d}.jpg"] = jpeg(number)
    return files


def karpathy_coco() -> Files:
    own: dict[int, tuple[list[tuple[int, float]], list[str]]] = {
        9: ([(1, 5.0), (3, 9.0)], ["x"]),
        25: ([(18, 2.0)], ["x"]),
    }
    images = [
        {
            "filepath": f"{folder}2014",
            "filename": f"COCO_{folder}2014_{number:012d}.jpg",
            "sentids": [770 + number, 771 + number],
            "imgid": place,
            "cocoid": number,
            "split": split,
            "sentences": [
                {
                    "tokens": ["a"],
                    "raw": f"Caption {n} of {number}. ",
                    "imgid": place,
                    "sentid": 770 + number + n,
                }
                for n in range(2)
            ],
        }
        for place, (folder, number, split) in enumerate(
            [("train", 9, "train"), ("val", 25, "restval"), ("val", 31, "val"), ("val", 32, "test")]
        )
    ]
    files: Files = {"dataset_coco.json": json.dumps({"images": images, "dataset": "coco"})}
    files |= coco_annotations({9: own[9]}, "train2014", "COCO_train2014_{:012d}.jpg")
    files |= coco_annotations({25: own[25]}, "val2014", "COCO_val2014_{:012d}.jpg")
    for image in images:
        files[f"{image['filepath']}/{image['filename']}"] = jpeg(len(files))
    return files


def karpathy_flickr() -> Files:
    images = [
        {
            "sentids": [0],
            "imgid": number,
            "sentences": [{"tokens": ["a"], "raw": f"A dog number {number} .", "imgid": number, "sentid": 0}],
            "split": split,
            "filename": f"{1000 + number}.jpg",
        }
        for number, split in enumerate(("train", "val", "test"))
    ]
    files: Files = {"dataset_flickr30k.json": json.dumps({"images": images, "dataset": "flickr30k"})}
    return files | {f"flickr30k-images/{1000 + number}.jpg": jpeg(number) for number in range(3)}


def flickr8k() -> Files:
    """Five pictures: one per split list, one in none, and the picture of the official file's `.jpg.1` rows, missing."""
    names = (
        "1000268201_693b08cb0e",
        "1001773457_577c3a7d70",
        "1002674143_1b742ab4b8",
        "1003163366_44323f5815",
    )
    texts = {name: [f"A child number {n} climbs the stairs ." for n in range(5)] for name in names}
    lines = [f"{name}.jpg#{n}\t{text}" for name, own in texts.items() for n, text in enumerate(own)]
    lines += [f"2258277193_586949ec62.jpg.1#{n}\tpeople waiting for the subway" for n in range(5)]
    lines[1] = f"{names[0]}.jpg#1\t"
    files: Files = {
        "Flickr8k.token.txt": "\r\n".join(lines) + "\r\n",
        "Flickr8k.lemma.token.txt": "\n".join(lines) + "\n",
        "Flickr_8k.trainImages.txt": f"{names[0]}.jpg\r\n2258277193_586949ec62.jpg\r\n",
        "Flickr_8k.devImages.txt": f"{names[1]}.jpg\n",
        "Flickr_8k.testImages.txt": f"{names[2]}.jpg\n",
    }
    return files | {f"Flicker8k_Dataset/{name}.jpg": jpeg(number) for number, name in enumerate(names)}


def flickr30k() -> Files:
    lines = [
        f"{number}.jpg#{n}\tTwo dogs , number {n}" for number in (1000092795, 10002456) for n in range(5)
    ]
    files: Files = {"results_20130124.token": "\n".join(lines) + "\n"}
    return files | {f"flickr30k-images/{number}.jpg": jpeg(number % 7) for number in (1000092795, 10002456)}
