"""The preprocess stage end to end on a real local Ray, with tiny backbones."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.stages.corpus import GRID, bad_samples, corpus_config, good_samples, write_tar
from tests.stages.numbers import RAY_WARNINGS, digests
from zscmr_ray.config import Config
from zscmr_ray.data.pairs import load_pair_features
from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.manifest import require_manifest
from zscmr_ray.models.backbones import load_image_backbone, load_text_backbone
from zscmr_ray.schema import part_name, provenance_of
from zscmr_ray.stages import StageResult, stage_store
from zscmr_ray.stages.plane.chunks import Shard
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.stages.shards.inputs import find_input, find_shards
from zscmr_ray.stages.shards.source import PixelSpec, ShardSource
from zscmr_ray.storage import Store

pytestmark = [pytest.mark.ray, *RAY_WARNINGS]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards: 40 good rows, 5 good rows and all the bad ones, and a repeated id."""
    folder = tmp_path_factory.mktemp("corpus")
    write_tar(folder / "shards/a.tar", good_samples(1, 40))
    write_tar(folder / "shards/sub/b.tar", good_samples(2, 5) + bad_samples())
    write_tar(folder / "shards/c.tar", [(f"{key}", sample) for key, sample in good_samples(3, 3)])
    return folder


@pytest.fixture(scope="module")
def done(ray_local: None, root: Path) -> StageResult:
    return run_preprocess(corpus_config(root))


def part_of(root: Path, key: str, name: str = "run") -> pa.Table:
    return pq.read_table(root / name / "pairs" / part_name(key))


def test_every_row_is_counted(done: StageResult) -> None:
    assert not done.skipped
    assert done.counts == {
        "in": 53,
        "out": 48,
        "rejected": 5,
        "filtered": 0,
        "rejected_empty_caption": 1,
        "rejected_empty_image": 1,
        "rejected_not_an_image": 1,
        "rejected_too_many_pixels": 1,
        "rejected_truncated_image": 1,
        "shards": 3,
    }


def test_rejected_rows_say_where_and_why(done: StageResult, root: Path) -> None:
    rejected = pq.read_table(root / "run/pairs/rejected" / part_name("sub/b.tar")).to_pylist()
    assert [row["id"] for row in rejected] == [f"sub/b.tar#{key}" for key, _ in bad_samples()]
    assert [row["offset"] for row in rejected] == [5, 6, 7, 8, 9]
    assert all(row["reason"] and row["shard_key"] == "sub/b.tar" for row in rejected)


def test_the_directory_holds_its_manifest_and_parts_only(done: StageResult, root: Path) -> None:
    store = stage_store(corpus_config(root), "preprocess")
    manifest = require_manifest(store, "preprocess")
    names = {part_name(key) for key in ("a.tar", "sub/b.tar", "c.tar")}
    assert {part.name for part in manifest.parts} == names | {f"rejected/{part_name('sub/b.tar')}"}
    # The last driver's lease stays, ended: lease numbers only ever rise.
    found = {info.key for info in store.list() if not info.key.startswith("_lease/")}
    assert found == {part.name for part in manifest.parts} | {"manifest.json", "_stage.json"}
    assert {part.name: part.sha256 for part in manifest.parts}.items() <= digests(store).items()


def test_rows_keep_their_order_and_hold_the_backbones_features(done: StageResult, root: Path) -> None:
    """Against the backbones called directly, a row at a time."""
    table = part_of(root, "a.tar")
    assert table["source_offset"].to_pylist() == list(range(40))
    assert table["id"][7].as_py() == "a.tar#0007"
    image, text = load_image_backbone("tiny"), load_text_backbone("tiny", max_tokens=16)
    config = corpus_config(root)
    source = pair_source(config)
    (chunk, *_) = source.read(shard_of(config, "a.tar"))
    pixels = np.stack(
        [np.frombuffer(row, np.uint8).reshape(224, 224, 3) for row in chunk.table["pixels"].to_pylist()]
    )
    features = load_pair_features([table], num_regions=GRID**2, token_channels=text.num_channels)
    for row in (0, 7, 15):
        alone = image(torch.from_numpy(pixels[row : row + 1]), region_grid=GRID)
        np.testing.assert_allclose(
            features.regions_NRD[row], alone.regions_BRD[0].numpy(), rtol=2e-3, atol=2e-3
        )
        assert alone.logits_BC is not None and features.prior_logits_NC is not None
        np.testing.assert_allclose(
            features.prior_logits_NC[row], alone.logits_BC[0].numpy(), rtol=2e-3, atol=2e-3
        )
        for number, caption in enumerate(features.captions[row]):
            tokens = text([caption])
            assert features.tokens(row, number).shape[0] == int(tokens.lengths_B[0])
            np.testing.assert_allclose(
                features.tokens(row, number), tokens.tokens_BLD[0].numpy(), rtol=2e-3, atol=2e-3
            )
    assert features.labels[:3] == [("kind a",), ("kind b",), ("kind c",)]
    assert features.thumbnails[0].startswith(b"\xff\xd8")


def test_files_say_what_made_them_and_no_place(done: StageResult, root: Path) -> None:
    schema = part_of(root, "a.tar").schema
    provenance = provenance_of(schema)
    assert provenance["stage"] == "preprocess"
    assert provenance["region_grid"] == GRID
    assert provenance["image_backbone"] == done.info["image_backbone"]
    assert str(root) not in str(schema.metadata)
    rejected = pq.read_schema(root / "run/pairs/rejected" / part_name("sub/b.tar"))
    assert provenance_of(rejected) == provenance
    shapes = ("num_regions", "image_channels", "token_channels", "num_classes", "max_tokens")
    assert [done.info[name] for name in shapes] == [4, 32, 32, 16, 16]


def test_a_second_run_returns_at_once_and_touches_nothing(done: StageResult, root: Path) -> None:
    store = stage_store(corpus_config(root), "preprocess")
    before = store.list()
    again = run_preprocess(corpus_config(root))
    assert again == dataclasses.replace(done, skipped=True)
    assert store.list() == before


def test_other_settings_are_refused_by_name(done: StageResult, root: Path) -> None:
    with pytest.raises(RefusedError, match=r"preprocess\.max_tokens: 16 -> 8"):
        run_preprocess(corpus_config(root, preprocess={"max_tokens": 8}))


def test_another_width_writes_the_same_bytes(done: StageResult, root: Path) -> None:
    others = {"num_encoders": 1, "decode_cpus": 1.0, "steps": "apart"}
    config = corpus_config(root, "wide", preprocess=others)
    run_preprocess(config)
    assert digests(stage_store(config, "preprocess")) == digests(
        stage_store(corpus_config(root), "preprocess")
    )


def test_a_truncated_shard_is_named_and_the_others_are_committed(
    ray_local: None, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "shards", tmp_path / "shards")
    data = (tmp_path / "shards/a.tar").read_bytes()
    (tmp_path / "shards/a.tar").write_bytes(data[: len(data) // 2])
    config = corpus_config(tmp_path)
    with pytest.raises(DataError, match=r"1 of 3 shards.*a\.tar") as caught:
        run_preprocess(config)
    assert caught.value.exit_code == 3
    store = stage_store(config, "preprocess")
    assert {key for key in digests(store) if "/" not in key} == {part_name("c.tar"), part_name("sub/b.tar")}
    with pytest.raises(DataError, match="preprocess is not complete"):
        require_manifest(store, "preprocess")


def test_a_cap_on_classes_filters_rows_and_counts_them(ray_local: None, root: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").symlink_to(root / "shards")
    config = corpus_config(tmp_path, data={"max_items_per_class": 4})
    result = run_preprocess(config)
    assert {name: result.counts[name] for name in ("in", "out", "rejected", "filtered")} == {
        "in": 53, "out": 12, "rejected": 5, "filtered": 36,
    }  # fmt: skip
    tables = [part_of(tmp_path, key) for key in ("a.tar", "sub/b.tar", "c.tar")]
    labels = [row[0] for table in tables for row in table["labels"].to_pylist()]
    assert sorted(labels) == sorted(["kind a", "kind b", "kind c"] * 4)


@pytest.mark.parametrize(
    ("files", "rows", "classes"),
    [
        ("flickr8k/val-00000.tar", 500, 0),
        ("fashion/part-00000.parquet", None, 70),
        ("cc12m-00000.tar", 32, 0),
    ],
)
def test_real_shards(
    ray_local: None, shared_data: Path, tmp_path: Path, files: str, rows: int | None, classes: int
) -> None:
    data = {"input_uri": str(shared_data / files), "run_uri": str(tmp_path / "run"), "max_pixels": 64_000_000}
    result = run_preprocess(corpus_config(tmp_path, data=data))
    counts = result.counts
    assert counts["in"] == counts["out"] + counts["rejected"] + counts["filtered"]
    assert rows is None or counts["in"] == rows
    assert counts["out"] >= 0.95 * counts["in"]
    table = pq.read_table(tmp_path / "run/pairs" / part_name(Path(files).name))
    assert len({label for row in table["labels"].to_pylist() for label in row}) <= classes
    assert set(table["partition"].to_pylist()) <= {"train", "val", "test"}


def pair_source(config: Config) -> ShardSource:
    section = config.preprocess
    return ShardSource(
        input=Store(config.data.input_uri),
        data=config.data,
        pixels=PixelSpec(224, 0.875, "bicubic"),
        chunk_rows=section.chunk_rows,
        thumbnail_px=section.thumbnail_px,
        keep_images=section.keep_images,
    )


def shard_of(config: Config, key: str) -> Shard:
    _, files = find_input(config.data.input_uri)
    return next(shard for shard in find_shards(files, config.data) if shard.key == key)
