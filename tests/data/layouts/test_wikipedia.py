"""Wikipedia (SVCL): the fixture's oddities, the errors, and the real texts and lists where they are present."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import pytest

from tests.data.layouts.fixtures import read, wikipedia, write
from zscmr_ray.data.layouts import plan_layout, read_layout
from zscmr_ray.data.layouts.texts import decode_legacy, wikipedia_text
from zscmr_ray.data.records import Columns, Record, RowRejected
from zscmr_ray.errors import DataError
from zscmr_ray.storage import Store


def test_lists_texts_and_pictures_become_rows(tmp_path: Path) -> None:
    found, rejects, plan = read(write(tmp_path, wikipedia()), "wikipedia")
    assert sorted(found) == ["t0-1", "t1-1", "t2-1", "t3-1", "t6-1", "t7-1"]
    assert found["t0-1"].captions == ("A duchy – and R&B × 2, see http://x.org/?a=1&sect=2.",)
    assert found["t1-1"].captions == ("Plain words about it.",)
    assert found["t2-1"].captions == ("Café society",)
    assert found["t3-1"].captions == ("A section of two lines.",)
    assert [found[name].labels for name in ("t0-1", "t1-1")] == [("art",), ("biology",)]
    assert Counter(row.partition for row in found.values()) == {"train": 4, "test": 2}
    assert all(row.image and row.image.startswith(b"\xff\xd8") for row in found.values())
    assert {group: len(rows) for group, rows in plan.rows.items()} == {"trainset": 7, "testset": 2}
    assert [(row.shard_key, row.key, row.code.value) for row in rejects] == [
        ("trainset-00000", "t4-1", "missing_image"),
        ("trainset-00000", "t5-1", "unreadable_record"),
        ("trainset-00000", "t8-1", "missing_caption"),
    ]
    assert "images/art/i4.jpg" in rejects[0].reason


def test_labels_and_partitions_can_be_left_out(tmp_path: Path) -> None:
    found, _, _ = read(write(tmp_path, wikipedia()), "wikipedia", Columns(label="-", partition="-"))
    assert {(row.labels, row.partition) for row in found.values()} == {((), None)}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("t0-1\ti0\t3", "1 to 2"),
        ("t0-1\ti0\t0", "1 to 2"),
        ("t0-1\ti0", "three fields"),
        ("t0-1\ti0\tart", "1 to 2"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, what: str) -> None:
    files = wikipedia() | {"testset_txt_img_cat.list": f"t6-1\ti6\t1\n{line}\n"}
    with pytest.raises(DataError, match=f"testset_txt_img_cat.list, line 2.*{what}"):
        read(write(tmp_path, files), "wikipedia")


def test_a_folder_too_high_says_which_one_is_meant(tmp_path: Path) -> None:
    write(tmp_path / "wikipedia_dataset", wikipedia())
    with pytest.raises(DataError, match=r"point data.input_uri at wikipedia_dataset/"):
        read(tmp_path, "wikipedia")
    with pytest.raises(DataError, match=r"no categories.list.*docs/datasets.md"):
        read(write(tmp_path / "other", {"a.txt": "x"}), "wikipedia")


def test_shards_have_a_fixed_number_of_rows_and_know_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zscmr_ray.data.layouts.base.SHARD_ROWS", 3)
    store = Store(write(tmp_path, wikipedia()))
    before, _ = plan_layout("wikipedia", store.list(), store.open)
    assert [(spec.key, len(spec.rows)) for spec in before] == [
        ("testset-00000", 2),
        ("trainset-00000", 3),
        ("trainset-00001", 3),
        ("trainset-00002", 1),
    ]
    files = [path for folder in ("images", "texts") for path in (tmp_path / folder).rglob("*.*")]
    assert sum(spec.size_bytes for spec in before) == sum(path.stat().st_size for path in files)
    (tmp_path / "images/art/i0.jpg").write_bytes(b"other")
    after, _ = plan_layout("wikipedia", store.list(), store.open)
    assert [old.version == new.version for old, new in zip(before, after, strict=True)] == [
        True,
        False,
        True,
        True,
    ]


def test_old_encodings_and_torn_texts() -> None:
    assert decode_legacy(b"\xef\xbb\xbfplain") == "plain"
    assert decode_legacy(b"\x93quoted\x94") == "“quoted”"
    assert decode_legacy(b"\x81") == "\x81"
    with pytest.raises(RowRejected, match=r"a.xml has no <text>"):
        wikipedia_text(b"<document></document>", "a.xml")


def test_the_real_texts_and_lists_parse_whole(shared_data: Path, tmp_path: Path) -> None:
    archive = shared_data / "wikipedia.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    store = Store(tmp_path / "wikipedia")
    specs, plan = plan_layout("wikipedia", store.list(), store.open)
    assert {group: len(rows) for group, rows in plan.rows.items()} == {"trainset": 2173, "testset": 693}
    counts = {
        group: [count for _, count in sorted(Counter(row.labels for row in rows).items())]
        for group, rows in plan.rows.items()
    }
    assert counts["trainset"] == [138, 272, 244, 248, 202, 178, 186, 144, 214, 347]
    assert counts["testset"] == [34, 88, 96, 85, 65, 58, 51, 41, 71, 104]
    rows = [
        row
        for spec in specs
        for row in read_layout(spec, store.open, Columns(), needs={"caption"}, with_images=False)
    ]
    texts = [row.captions for row in rows if isinstance(row, Record)]
    assert len(texts) == len(rows) == 2866
    assert all(len(own) == 1 and len(own[0]) > 100 for own in texts)
    assert not any("&ndash;" in own[0] or "</text>" in own[0] for own in texts)
    assert sum("–" in own[0] for own in texts) > 500
