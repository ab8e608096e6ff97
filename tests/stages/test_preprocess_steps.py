"""The parts of preprocess as plain callables, without Ray: input, source, cap, encoder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.stages.corpus import corpus_config, good_samples, jpeg, write_tar
from zscmr_ray.config import Config
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.models.backbones import ImageFeatures, load_image_backbone, load_text_backbone
from zscmr_ray.stages.plane.chunks import DecodedChunk, Shard
from zscmr_ray.stages.preprocess.encoder import PairEncoder, describe_backbones
from zscmr_ray.stages.shards.cap import keep_offsets, scan_shards
from zscmr_ray.stages.shards.inputs import find_input, find_shards
from zscmr_ray.stages.shards.source import KEEP, PixelSpec, ShardSource
from zscmr_ray.storage import Store


def make_source(config: Config) -> ShardSource:
    section = config.preprocess
    return ShardSource(
        Store(config.data.input_uri),
        config.data,
        PixelSpec(224, 0.875, "bicubic"),
        section.chunk_rows,
        section.thumbnail_px,
        section.keep_images,
    )


def read(config: Config, **detail: object) -> list[DecodedChunk]:
    _, files = find_input(config.data.input_uri)
    (shard,) = find_shards(files, config.data)
    return list(make_source(config).read(Shard(shard.part, shard.key, 1, detail=shard.detail | detail)))


def folder(tmp_path: Path, num_rows: int) -> Path:
    write_tar(tmp_path / "shards/a.tar", good_samples(1, num_rows))
    return tmp_path


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1]), (16, [16]), (17, [16, 1]), (32, [16, 16])])
def test_chunks_are_cut_inside_the_shard_and_only_the_last_says_so(
    tmp_path: Path, rows: int, sizes: list[int]
) -> None:
    chunks = read(corpus_config(folder(tmp_path, rows)))
    assert [chunk.table.num_rows for chunk in chunks] == sizes
    assert [chunk.last for chunk in chunks] == [False] * (len(sizes) - 1) + [True]
    assert sum(chunk.num_in for chunk in chunks) == rows


def test_a_shard_without_rows_is_one_empty_last_chunk(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards/a.tar", [])
    (chunk,) = read(corpus_config(tmp_path))
    assert (chunk.num_in, chunk.table.num_rows, chunk.last) == (0, 0, True)


def test_rows_not_kept_are_filtered_and_not_decoded(tmp_path: Path) -> None:
    (chunk,) = read(corpus_config(folder(tmp_path, 8)), **{KEEP: [2, 5]})
    assert chunk.table["source_offset"].to_pylist() == [2, 5]
    assert (chunk.num_in, chunk.num_filtered) == (8, 6)


def test_original_bytes_are_kept_on_request_only(tmp_path: Path) -> None:
    root = folder(tmp_path, 2)
    (chunk,) = read(corpus_config(root, preprocess={"keep_images": True}))
    assert chunk.table["image"].to_pylist() == [jpeg(1000), jpeg(1001)]
    assert chunk.table["sha256"][0].as_py() == hashlib.sha256(jpeg(1000)).hexdigest()
    (chunk,) = read(corpus_config(root))
    assert chunk.table["image"].null_count == 2


def test_captions_of_class_words_only_are_rejected_when_masked(tmp_path: Path) -> None:
    samples = [("x", {"jpg": jpeg(1), "txt": b"Red Dresses", "cls": b"red dress"}), *good_samples(1, 1)]
    write_tar(tmp_path / "shards/a.tar", samples)
    (chunk,) = read(corpus_config(tmp_path))
    assert chunk.table.num_rows == 2
    (chunk,) = read(corpus_config(tmp_path, data={"mask_class_words": True}))
    assert chunk.table["captions"].to_pylist() == [["a picture of a number 0"]]
    assert [(row.code, row.offset) for row in chunk.rejects] == [("empty_caption", 0)]


def test_captions_are_cut_to_their_limits(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards/a.tar", [("x", {"jpg": jpeg(1), "txt": b"one two three\nfour\nfive"})])
    (chunk,) = read(corpus_config(tmp_path, data={"max_captions": 2, "max_caption_chars": 7}))
    assert chunk.table["captions"].to_pylist() == [["one two", "four"]]


def test_a_repeated_id_is_rejected_once_per_repeat(tmp_path: Path) -> None:
    rows = '{"id": "x", "image": "%s", "caption": "one"}\n'
    names = []
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
        names.append(f"{number}.jpg")
    (tmp_path / "list.jsonl").write_text("".join(rows % name for name in names))
    config = corpus_config(
        tmp_path, data={"input_uri": str(tmp_path / "list.jsonl"), "columns": {"id": "id"}}
    )
    store, files = find_input(config.data.input_uri)
    (shard,) = find_shards(files, config.data)
    source = make_source(
        config.model_copy(update={"data": config.data.model_copy(update={"input_uri": store.uri})})
    )
    (chunk,) = source.read(shard)
    assert chunk.table["id"].to_pylist() == ["x"]
    assert [row.code for row in chunk.rejects] == ["duplicate_id"] * 2


def test_the_cap_chooses_over_all_shards_whatever_their_order(tmp_path: Path) -> None:
    for name in "ab":
        write_tar(tmp_path / f"shards/{name}.tar", good_samples(1, 9))
    config = corpus_config(tmp_path)
    store, files = find_input(config.data.input_uri)
    shards = find_shards(files, config.data)
    found = scan_shards(store, config.data, shards)
    kept = {shard.key: shard.detail[KEEP] for shard in keep_offsets(shards, found, 2)}
    again = {shard.key: shard.detail[KEEP] for shard in keep_offsets(shards[::-1], found, 2)}
    assert kept == again
    expected: dict[str, list[int]] = {"a.tar": [], "b.tar": []}
    for kind in range(3):
        ids = [(key, offset) for key in expected for offset in range(kind, 9, 3)]
        by_hash = sorted(ids, key=lambda row: hashlib.sha256(f"{row[0]}#{row[1]:04d}".encode()).digest())
        for key, offset in by_hash[:2]:
            expected[key].append(offset)
    assert kept == {key: sorted(offsets) for key, offsets in expected.items()}


def test_an_unreadable_shard_has_no_rows_to_choose_from(tmp_path: Path) -> None:
    root = folder(tmp_path, 4)
    data = (root / "shards/a.tar").read_bytes()
    (root / "shards/a.tar").write_bytes(data[:700])
    config = corpus_config(root)
    store, files = find_input(config.data.input_uri)
    shards = find_shards(files, config.data)
    assert keep_offsets(shards, scan_shards(store, config.data, shards), 2) == shards


def test_input_is_a_folder_a_file_or_a_glob(tmp_path: Path) -> None:
    for key in ("a.tar", "b.tar", "sub/c.tar"):
        write_tar(tmp_path / key, good_samples(1, 1))
    found = {
        pattern: [info.key for info in find_input(f"{tmp_path}{pattern}")[1]]
        for pattern in ("", "/a.tar", "/*.tar", "/**/*.tar", "/[bc].tar", "/*/c.tar")
    }
    assert found == {
        "": ["a.tar", "b.tar", "sub/c.tar"],
        "/a.tar": ["a.tar"],
        "/*.tar": ["a.tar", "b.tar"],
        "/**/*.tar": ["a.tar", "b.tar", "sub/c.tar"],
        "/[bc].tar": ["b.tar"],
        "/*/c.tar": ["sub/c.tar"],
    }


def test_missing_input_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.input_uri"):
        find_input("")
    with pytest.raises(DataError, match="no such path"):
        find_input(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="an empty folder"):
        find_input(str(tmp_path))


def encoder(config: Config) -> PairEncoder:
    image, text = load_image_backbone("tiny"), load_text_backbone("tiny", max_tokens=16)
    return PairEncoder(image, text, config.preprocess, {"by": "test"})


def test_features_that_are_not_finite_reject_their_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = corpus_config(folder(tmp_path, 3))
    (chunk,) = read(config)
    made = encoder(config)

    def overflow(pixels_BHW3: torch.Tensor, *, region_grid: int) -> ImageFeatures:
        regions_BRD = torch.zeros(len(pixels_BHW3), region_grid**2, 32)
        regions_BRD[1, 0, 0] = 70_000.0  # finite in fp32, infinite in half precision
        return ImageFeatures(regions_BRD, torch.zeros(len(pixels_BHW3), 16))

    monkeypatch.setattr(made.image, "forward", overflow)
    encoded = made.encode(chunk.table)
    assert encoded.outputs[""]["source_offset"].to_pylist() == [0, 2]
    assert [(row.offset, row.code, row.stage) for row in encoded.rejects] == [(1, "non_finite", "encode")]


def test_a_chunk_without_rows_still_has_the_schema(tmp_path: Path) -> None:
    config = corpus_config(folder(tmp_path, 3))
    (chunk,) = read(config)
    made = encoder(config)
    assert made.encode(chunk.table.slice(0, 0)).outputs[""].schema.equals(made.schema, check_metadata=True)
    sliced = made.encode(chunk.table.slice(1, 1)).outputs[""]
    whole = made.encode(chunk.table).outputs[""]
    first, second = (
        np.frombuffer(table["regions"][row].as_py(), np.float16) for table, row in ((sliced, 0), (whole, 1))
    )
    np.testing.assert_allclose(first, second, rtol=2e-3, atol=2e-3)


def test_words_without_a_vector_are_counted(tmp_path: Path) -> None:
    config = corpus_config(folder(tmp_path, 3))
    (chunk,) = read(config)
    (tmp_path / "glove.txt").write_text("a 1 2\npicture 3 4\nof 5 6\n")
    words = load_text_backbone(f"words:{tmp_path / 'glove.txt'}", max_tokens=16)
    made = PairEncoder(load_image_backbone("tiny"), words, config.preprocess, {})
    encoded = made.encode(chunk.table)
    captions = [caption for row in chunk.table["captions"].to_pylist() for caption in row]
    known = sum(word in ("a", "picture", "of") for caption in captions for word in caption.split())
    total = sum(len(caption.split()) for caption in captions)
    assert 0 < known < total
    assert encoded.tally == {"words": total, "words_unknown": total - known}
    assert encoder(config).encode(chunk.table).tally == {}


def test_without_a_teacher_there_are_no_priors(tmp_path: Path) -> None:
    config = corpus_config(folder(tmp_path, 2), preprocess={"teacher": "none"})
    (chunk,) = read(config)
    assert pa.types.is_null(encoder(config).encode(chunk.table).outputs[""].schema.field("prior_logits").type)
    info = describe_backbones(config.preprocess)
    assert info["teacher"] is None and info["num_classes"] is None


def test_a_grid_the_backbone_lacks_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="region grid"):
        describe_backbones(corpus_config(tmp_path, preprocess={"region_grid": 8}).preprocess)
