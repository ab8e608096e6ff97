"""What a row must have, by `data.modality`, in every format: the absent side is no defect, the present one still is."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.stages.corpus import corpus_config, jpeg, write_tar
from zscmr_ray.errors import DataError
from zscmr_ray.stages.plane.chunks import DecodedChunk
from zscmr_ray.stages.shards.inputs import find_input, find_shards
from zscmr_ray.stages.shards.source import PixelSpec, ShardSource

NOT_UTF8 = b"caf\xe9"


def read(root: Path, modality: str, **data: object) -> DecodedChunk:
    config = corpus_config(root, data={"modality": modality, **data})
    store, files = find_input(config.data.input_uri)
    (shard,) = find_shards(files, config.data)
    pixels = PixelSpec(32, 1.0, "bicubic") if modality != "text" else None
    (chunk,) = ShardSource(store, config.data, pixels, 64, None).read(shard)
    return chunk


def codes(chunk: DecodedChunk) -> list[str]:
    return sorted(reject.code for reject in chunk.rejects)


def write(root: Path, kind: str) -> None:
    """Three rows: a picture alone, a caption alone, both."""
    folder = root / "shards"
    folder.mkdir(parents=True)
    if kind == "webdataset":
        write_tar(
            folder / "a.tar",
            [("0", {"jpg": jpeg(0)}), ("1", {"txt": b"alone"}), ("2", {"jpg": jpeg(2), "txt": b"both"})],
        )
        return
    images, captions = (jpeg(0), None, jpeg(2)), (None, "alone", "both")
    if kind == "parquet":
        pq.write_table(pa.table({"image": list(images), "caption": list(captions)}), folder / "a.parquet")
        return
    for number, image in enumerate(images):
        if image:
            (folder / f"{number}.jpg").write_bytes(image)
    rows = [
        {"image": f"{number}.jpg" if image else "", "caption": caption or ""}
        for number, (image, caption) in enumerate(zip(images, captions, strict=True))
    ]
    if kind == "jsonl":
        (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        (folder / "a.csv").write_text(
            "image,caption\n" + "\n".join(",".join(row.values()) for row in rows) + "\n"
        )
    else:
        (folder / "1.txt").write_text("alone")
        (folder / "2.txt").write_text("both")


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "jsonl", "csv", "folder"])
def test_a_row_needs_what_its_corpus_is_made_of(tmp_path: Path, kind: str) -> None:
    write(tmp_path, kind)
    data = {"format": kind}
    pairs, image, text = (read(tmp_path, modality, **data) for modality in ("pairs", "image", "text"))
    assert (pairs.table.num_rows, image.table.num_rows, text.table.num_rows) == (1, 2, 2)
    assert all(chunk.num_in == 3 for chunk in (pairs, image, text))
    assert codes(image) == ["missing_image"] and codes(text)[0].endswith("_caption")
    assert image.table["captions"].to_pylist() == [[], []]
    assert text.table["captions"].to_pylist() == [["alone"], ["both"]]
    assert "pixels" not in text.table.column_names
    assert text.table["sha256"].null_count == text.table["thumbnail"].null_count == 2


def test_defects_of_the_side_that_is_not_read_reject_nothing(tmp_path: Path) -> None:
    good = jpeg(1)
    rows = [("0", {"jpg": good, "txt": NOT_UTF8}), ("1", {"jpg": b"<html>", "txt": b"a caption"})]
    write_tar(tmp_path / "shards/a.tar", rows)
    assert codes(read(tmp_path, "pairs")) == ["bad_text_encoding", "not_an_image"]
    assert codes(read(tmp_path, "image")) == ["not_an_image"]
    assert codes(read(tmp_path, "text")) == ["bad_text_encoding"]


def test_a_folder_of_pictures_beside_unreadable_texts(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/0.jpg").write_bytes(jpeg(0))
    (tmp_path / "shards/0.txt").write_bytes(NOT_UTF8)
    assert codes(read(tmp_path, "pairs", format="folder")) == ["bad_text_encoding"]
    assert read(tmp_path, "image", format="folder").table.num_rows == 1


def test_tables_need_only_the_columns_of_their_side(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    pq.write_table(pa.table({"caption": ["one", "two"]}), tmp_path / "shards/a.parquet")
    assert read(tmp_path, "text").table.num_rows == 2
    for modality in ("pairs", "image"):
        with pytest.raises(DataError, match="no column with the image"):
            read(tmp_path, modality)


def test_words_of_the_class_are_not_masked_where_there_are_no_captions(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards/a.tar", [("0", {"jpg": jpeg(0), "txt": b"a dog", "cls": b"dog"})])
    chunk = read(tmp_path, "image", mask_class_words=True)
    assert chunk.table["labels"].to_pylist() == [["dog"]] and not chunk.rejects
