"""Layouts by class folder and by image list: Pascal Sentence, XMedia/XMediaNet, NUS-WIDE and its ten classes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.data.layouts.fixtures import Files, nuswide, pascal_sentence, read, write, xmedia
from zscmr_ray.data.layouts.nuswide import TEN_CLASSES
from zscmr_ray.errors import DataError


def test_pascal_has_five_sentences_and_a_split_of_each_class(tmp_path: Path) -> None:
    files = pascal_sentence()
    del files["sentence/aeroplane/2008_000003.txt"], files["dataset/diningtable/2008_000004.jpg"]
    found, rejects, plan = read(write(tmp_path, files), "pascal_sentence")
    assert len(found) == 18 and plan.remarks
    first = found["aeroplane/2008_000000"]
    assert first.captions == tuple(f"Sentence {n} of aeroplane 0." for n in range(5))
    assert first.labels == ("aeroplane",)
    parts = {name: row.partition for name, row in found.items()}
    assert [parts[f"diningtable/2008_{n:06d}"] for n in (0, 7, 8, 9)] == ["train", "train", "val", "test"]
    assert [(row.key, row.code.value) for row in rejects] == [
        ("aeroplane/2008_000003", "missing_caption"),
        ("diningtable/2008_000004", "missing_image"),
    ]


def test_pascal_without_its_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no classes.*images/.*sentence/<class>"):
        read(write(tmp_path, {"images/a/1.jpg": b"x"}), "pascal_sentence")


LISTS: dict[str, Files] = {
    "paths": {
        "train.txt": "texts/insect/0_insect.txt\timages/insect/insect_0.jpg\t1\r\n"
        "texts/bird/1_bird.txt\timages/bird/insect_9.jpg\t2\r\n",
        "lists/test.list": "bird\\2_bird.txt bird\\bird_2.jpg bird\n",
    },
    "names": {
        "train_list.txt": "0_insect insect_0\nbird/1_bird bird/insect_9\n",
        "test_list.txt": "bird_2.jpg,2_bird.txt\n",
    },
    "twos": {
        "list/train_txt.list": "insect/0_insect.txt\nbird/1_bird.txt\n",
        "list/train_img.list": "insect/insect_0.jpg\nbird/insect_9.jpg\n",
        "list/test_text.list": "2_bird.txt\n",
        "list/test_image.list": "bird_2.jpg\n",
    },
}


@pytest.mark.parametrize("form", LISTS)
def test_xmedia_lists_in_each_form(tmp_path: Path, form: str) -> None:
    found, rejects, _ = read(write(tmp_path, xmedia() | LISTS[form]), "xmedia")
    assert {name: (row.labels, row.partition) for name, row in found.items()} == {
        "insect/0_insect": (("insect",), "train"),
        "bird/2_bird": (("bird",), "test"),
    }
    assert found["bird/2_bird"].captions == ("about the bird 2 in two lines",)
    assert [(row.key, row.code.value) for row in rejects] == [("bird/1_bird", "missing_image")]


def test_xmedia_without_lists_pairs_equal_names(tmp_path: Path) -> None:
    files = {key.replace("0_insect", "insect_0"): data for key, data in xmedia().items()}
    found, rejects, plan = read(write(tmp_path, files), "xmedia")
    assert list(found) == ["insect/insect_0"] and found["insect/insect_0"].partition is None
    assert len(rejects) == 10 and "no list files" in plan.remarks[0]


def test_xmedia_lists_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a text nor a picture"):
        read(write(tmp_path / "a", xmedia() | {"train.txt": "fish/0 fish/1\n"}), "xmedia")
    twos = {"train_txt.txt": "insect/0_insect\n", "train_img.txt": "insect/insect_0\ninsect/insect_1\n"}
    with pytest.raises(DataError, match=r"1 and 2 lines"):
        read(write(tmp_path / "b", xmedia() | twos), "xmedia")


def test_nuswide_keeps_every_class_and_the_official_split(tmp_path: Path) -> None:
    found, rejects, _ = read(write(tmp_path, nuswide()), "nuswide")
    assert {name: (row.labels, row.partition) for name, row in found.items()} == {
        "0000_21": (("sky", "person"), "train"),
        "0001_22": (("sky",), "train"),
        "0003_24": (("tower",), "test"),
    }
    assert found["0001_22"].captions == ("blue sky",)
    assert [(row.key, row.code.value) for row in rejects] == [
        ("0004_25", "missing_image"),
        ("0002_23", "empty_caption"),
    ]


def test_nuswide10k_is_single_label_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    found, rejects, plan = read(write(tmp_path, nuswide()), "nuswide10k")
    assert len(TEN_CLASSES) == 10
    assert {name: row.labels for name, row in found.items()} == {"0001_22": ("sky",)}
    assert Counter(row.code.value for row in rejects) == {"missing_image": 1, "empty_caption": 1}
    assert plan.left_out == {"none of the ten classes": 1, "several of the ten classes": 1}


def test_nuswide_lists_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    short = nuswide() | {"Groundtruth/AllLabels/Labels_sky.txt": "1\n0\n"}
    with pytest.raises(DataError, match=r"Labels_sky.txt does not fit.*2 lines.*5 lines"):
        read(write(tmp_path / "a", short), "nuswide")
    with pytest.raises(DataError, match=r"knows none of the pictures.*tags, as 21"):
        read(write(tmp_path / "b", nuswide() | {"NUS_WID_Tags/All_Tags.txt": "99 a b\n"}), "nuswide")
    files = nuswide()
    del files["Concepts81.txt"]
    with pytest.raises(DataError, match=r"no single file Concepts81.txt"):
        read(write(tmp_path / "c", files), "nuswide")
