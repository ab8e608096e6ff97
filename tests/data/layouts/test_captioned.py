"""Captioned pictures: COCO's JSON, Karpathy's splits, Flickr's token files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.layouts.fixtures import coco, flickr8k, flickr30k, karpathy_coco, karpathy_flickr, read, write
from zscmr_ray.errors import DataError


def test_coco_labels_are_ordered_by_the_area_they_cover(tmp_path: Path) -> None:
    found, rejects, plan = read(write(tmp_path, coco()), "coco")
    assert {name: row.labels for name, row in found.items()} == {
        "000000000009": ("car", "person"),
        "000000000025": ("dog", "person"),  # two dogs of 105 together against one person of 100
        "000000000030": (),
        "000000000139": ("cat", "dining table"),
    }
    assert {name: row.partition for name, row in found.items()} == {
        "000000000009": "train",
        "000000000025": "train",
        "000000000030": "train",
        "000000000139": "test",
    }
    assert found["000000000009"].captions == ("A car and a man.", "Someone drives")
    assert [(row.key, row.code.value) for row in rejects] == [
        ("000000000042", "missing_caption"),
        ("000000000285", "missing_image"),
    ]
    assert {group: len(rows) for group, rows in plan.rows.items()} == {"train2017": 4, "val2017": 2}


def test_coco_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    files = coco()
    del files["annotations/instances_val2017.json"]
    with pytest.raises(DataError, match=r"no annotations/instances_val2017.json"):
        read(write(tmp_path / "a", files), "coco")
    with pytest.raises(DataError, match=r"expected: annotations/captions_<set>.json"):
        read(write(tmp_path / "b", {"train2017/1.jpg": b"x"}), "coco")
    with pytest.raises(DataError, match=r"has no annotations"):
        read(write(tmp_path / "c", coco() | {"annotations/captions_val2017.json": '{"images": []}'}), "coco")
    with pytest.raises(DataError, match=r"is not JSON"):
        read(write(tmp_path / "d", coco() | {"annotations/captions_val2017.json": '{"images": ['}), "coco")
    broken = json.loads(str(coco()["annotations/instances_val2017.json"]))
    broken["annotations"][0]["category_id"] = 12
    with pytest.raises(DataError, match=r"category that it does not name; got: 12"):
        read(
            write(tmp_path / "e", coco() | {"annotations/instances_val2017.json": json.dumps(broken)}), "coco"
        )


def test_coco_captions_of_unlisted_pictures_are_counted(tmp_path: Path) -> None:
    extra = json.loads(str(coco()["annotations/captions_val2017.json"]))
    extra["annotations"].append({"image_id": 777, "id": 99, "caption": "lost"})
    _, _, plan = read(
        write(tmp_path, coco() | {"annotations/captions_val2017.json": json.dumps(extra)}), "coco"
    )
    assert plan.left_out == {"captions of val2017 whose picture is not listed": 1}


def test_karpathy_coco_has_its_splits_and_the_instances_classes(tmp_path: Path) -> None:
    found, rejects, _ = read(write(tmp_path, karpathy_coco()), "karpathy")
    assert not rejects
    assert {name: (row.partition, row.labels) for name, row in found.items()} == {
        "COCO_train2014_000000000009": ("train", ("car", "person")),
        "COCO_val2014_000000000025": ("train", ("dog",)),  # restval
        "COCO_val2014_000000000031": ("val", ()),
        "COCO_val2014_000000000032": ("test", ()),
    }
    assert found["COCO_val2014_000000000025"].captions == ("Caption 0 of 25.", "Caption 1 of 25.")


def test_karpathy_flickr_has_no_classes(tmp_path: Path) -> None:
    found, rejects, _ = read(write(tmp_path, karpathy_flickr()), "karpathy")
    assert not rejects
    assert [(name, row.partition, row.labels) for name, row in sorted(found.items())] == [
        ("1000", "train", ()),
        ("1001", "val", ()),
        ("1002", "test", ()),
    ]


def test_karpathy_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no single dataset_\*\.json.*move the others away"):
        read(write(tmp_path / "a", karpathy_flickr() | karpathy_coco()), "karpathy")
    other = {"dataset_flickr8k.json": json.dumps({"images": [{"filename": "1.jpg", "split": "holdout"}]})}
    with pytest.raises(DataError, match=r"picture 0 has no file name or split.*holdout.*restval"):
        read(write(tmp_path / "b", other), "karpathy")


def test_flickr8k_with_its_typo_rows_and_split_lists(tmp_path: Path) -> None:
    found, rejects, plan = read(write(tmp_path, flickr8k()), "flickr")
    assert {name: row.partition for name, row in found.items()} == {
        "1000268201_693b08cb0e": "train",
        "1001773457_577c3a7d70": "val",
        "1002674143_1b742ab4b8": "test",
    }
    # The empty caption of the first picture is dropped, its other four are kept in order.
    assert found["1000268201_693b08cb0e"].captions == tuple(
        f"A child number {n} climbs the stairs ." for n in (0, 2, 3, 4)
    )
    assert len(found["1002674143_1b742ab4b8"].captions) == 5
    assert [(row.key, row.code.value) for row in rejects] == [("2258277193_586949ec62", "missing_image")]
    assert plan.left_out == {"in none of the split lists": 1}


def test_flickr30k_without_lists_has_no_partition(tmp_path: Path) -> None:
    found, rejects, plan = read(write(tmp_path, flickr30k()), "flickr")
    assert not rejects and {row.partition for row in found.values()} == {None}
    assert [len(row.captions) for row in found.values()] == [5, 5]
    assert plan.remarks == ("no split lists: partition by the id's hash",)


def test_flickr_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no single token file.*move the other away"):
        read(write(tmp_path / "a", flickr8k() | flickr30k()), "flickr")
    with pytest.raises(DataError, match=r"line 2 is no caption.*<image>.jpg#<n> TAB"):
        read(write(tmp_path / "b", {"results.token": "1.jpg#0\ta dog\n1.jpg a dog\n"}), "flickr")
