"""The embed stage over a real preprocess and a small checkpoint; one run on Ray, the rest as plain callables."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.stages.corpus import corpus_config, good_samples, write_tar
from tests.stages.numbers import RAY_WARNINGS, digests
from tests.stages.small_run import write_checkpoint
from zscmr_ray.config import Config, EmbedSection
from zscmr_ray.data.pairs import load_pair_features
from zscmr_ray.engine.checkpoint import BackboneRecord, load_checkpoint
from zscmr_ray.engine.vector_model import find_model, load_model
from zscmr_ray.errors import ConfigError, DataError, RefusedError
from zscmr_ray.manifest import require_manifest
from zscmr_ray.models.base import SideOutput
from zscmr_ray.models.dual_encoder import DualEncoder
from zscmr_ray.schema import part_name, provenance_of
from zscmr_ray.stages import StageResult, stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.embed.encoder import FeatureShapes, VectorEncoder
from zscmr_ray.stages.embed.source import COLUMNS, FeatureSource, shards_of
from zscmr_ray.stages.preprocess import run_preprocess

pytestmark = [pytest.mark.ray, *RAY_WARNINGS]

SHARDS = {"a.tar": 40, "b.tar": 5}


@pytest.fixture(scope="module")
def config(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("embed")
    for number, (key, rows) in enumerate(SHARDS.items()):
        write_tar(root / "shards" / key, good_samples(number, rows))
    config = corpus_config(root)
    run_preprocess(config)
    write_checkpoint(config, labelled=True)
    return config


@pytest.fixture(scope="module")
def done(config: Config) -> StageResult:
    return run_embed(config)


def tables(config: Config, side: str) -> list[pa.Table]:
    store = stage_store(config, "embed")
    return [pq.read_table(store.path(f"{side}/{part_name(key)}")) for key in SHARDS]


def pairs_table(config: Config, key: str = "a.tar") -> pa.Table:
    return pq.read_table(stage_store(config, "preprocess").path(part_name(key)))


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.array(table["vector"].to_pylist(), np.float32)


def test_every_item_and_caption_has_a_row(config: Config, done: StageResult) -> None:
    num_captions = sum(1 + row % 3 for rows in SHARDS.values() for row in range(rows))
    assert done.counts == {
        "in": 45, "out": 45, "rejected": 0, "filtered": 0, "image": 45, "text": num_captions, "shards": 2,
    }  # fmt: skip
    for images, texts, key in zip(tables(config, "image"), tables(config, "text"), SHARDS, strict=True):
        pairs = pairs_table(config, key)
        for name in ("id", "labels", "source_shard", "source_offset", "sha256", "thumbnail"):
            assert images[name].to_pylist() == pairs[name].to_pylist()
        captions = pairs["captions"].to_pylist()
        ids = [
            f"{item}#{n}"
            for item, row in zip(pairs["id"].to_pylist(), captions, strict=True)
            for n in range(len(row))
        ]
        assert texts["id"].to_pylist() == ids
        assert texts["caption"].to_pylist() == [caption for row in captions for caption in row]
        assert all(
            row["id"].startswith(row["item_id"] + "#") for row in texts.select(["id", "item_id"]).to_pylist()
        )


def test_vectors_are_the_models_in_unit_blocks(config: Config, done: StageResult) -> None:
    """Against the model called directly, an item at a time."""
    model, meta = load_checkpoint(stage_store(config, "train"))
    features = load_pair_features([pairs_table(config)], num_regions=4, token_channels=32)
    images, texts = vectors_of(tables(config, "image")[0]), vectors_of(tables(config, "text")[0])
    with torch.inference_mode():
        for row in (0, 17, 39):
            side = model.encode_image(torch.from_numpy(features.regions_NRD[row : row + 1].copy()).float())
            np.testing.assert_allclose(images[row], model.vectors(side)[0], atol=2e-3)
            caption = int(features.caption_starts_N1[row])
            side = model.encode_text(*features.padded_tokens([caption]))
            np.testing.assert_allclose(texts[caption], model.vectors(side)[0], atol=2e-3)
    for block in meta.blocks:
        norms = np.linalg.norm(images[:, block.start : block.stop], axis=1)
        np.testing.assert_allclose(norms, 1, atol=5e-3)


def test_files_say_which_model_made_them(config: Config, done: StageResult) -> None:
    _, meta = load_checkpoint(stage_store(config, "train"))
    for side in ("image", "text"):
        for table in tables(config, side):
            provenance = provenance_of(table.schema)
            assert provenance["fingerprint"] == meta.fingerprint
            assert provenance["blocks"] == [block.model_dump() for block in meta.blocks]
    assert done.info["fingerprint"] == meta.fingerprint
    names = {part.name for part in require_manifest(stage_store(config, "embed"), "embed").parts}
    assert names == {f"{side}/{part_name(key)}" for side in ("image", "text") for key in SHARDS}
    assert names | {"manifest.json"} == set(digests(stage_store(config, "embed")))


def test_a_second_run_returns_at_once(config: Config, done: StageResult) -> None:
    assert run_embed(config) == dataclasses.replace(done, skipped=True)


def test_raw_shards_on_ray_give_the_same_bytes_for_any_width(
    config: Config, done: StageResult, tmp_path: Path
) -> None:
    """No pairs in the run: decoding and encoding scale apart, and the vectors are those of cached features."""
    seen = []
    for num_encoders in (1, 2):
        embed = {"model": config.data.run_uri, "num_encoders": num_encoders}
        data = {"run_uri": str(tmp_path / f"{num_encoders}")}
        raw = corpus_config(Path(config.data.input_uri).parent, data=data, embed=embed)
        result = run_embed(raw)
        assert result.info["features"] == "computed" and result.counts["image"] == 45
        for side in ("image", "text"):
            for one, other in zip(tables(raw, side), tables(config, side), strict=True):
                assert one.num_rows and one.equals(other)
        seen.append(digests(stage_store(raw, "embed")))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("side", ["image_backbone", "text_backbone"])
def test_features_of_other_weights_are_refused_with_both_hashes(
    config: Config, tmp_path: Path, side: str
) -> None:
    other = other_run(config, tmp_path)
    record = BackboneRecord(id="tiny", weights_sha256="f" * 64, num_channels=32)
    write_checkpoint(other, **{side: record})
    with pytest.raises(RefusedError) as caught:
        run_embed(other)
    pairs = require_manifest(stage_store(config, "preprocess"), "preprocess").info
    assert "f" * 64 in str(caught.value) and pairs[side]["weights_sha256"] in str(caught.value)


def test_features_of_another_shape_are_refused(config: Config, tmp_path: Path) -> None:
    other = other_run(config, tmp_path)
    write_checkpoint(other, max_tokens=8)
    with pytest.raises(RefusedError, match=r"max_tokens.*16 \(pairs\).*8 \(checkpoint\)"):
        run_embed(other)


def test_a_checkpoint_of_coarser_regions_gets_the_cached_maps_pooled(config: Config, tmp_path: Path) -> None:
    other = other_run(config, tmp_path)
    write_checkpoint(other, region_grid=1)
    run_embed(other)
    model, _ = load_checkpoint(stage_store(other, "train"))
    cached = load_pair_features([pairs_table(config)], num_regions=4, token_channels=32).regions_NRD
    images = tables(other, "image")[0]
    with torch.inference_mode():
        wanted = model.vectors(
            model.encode_image(torch.from_numpy(cached.astype(np.float32).mean(1)[:, None]))
        )
    np.testing.assert_allclose(vectors_of(images), wanted.numpy(), atol=4e-3)
    assert images.schema.field("region_weights").type.list_size == 1
    write_checkpoint(other, region_grid=3)
    with pytest.raises(RefusedError, match=r"region_grid.*2 \(pairs\).*3 \(checkpoint\)"):
        run_embed(other, overwrite=True)


def test_embed_needs_a_model_and_rows(config: Config, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train is not complete"):
        run_embed(other_run(config, tmp_path))
    with pytest.raises(ConfigError, match="no such model"):
        run_embed(other_run(config, tmp_path, model=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="nothing to embed"):
        run_embed(corpus_config(tmp_path, data={"input_uri": ""}))
    with pytest.raises(DataError, match="preprocess is not complete"):
        run_embed(corpus_config(tmp_path, embed={"source": "pairs", "model": config.data.run_uri}))


def other_run(config: Config, tmp_path: Path, **embed: object) -> Config:
    """Another run over the same pairs."""
    data = {"pairs_uri": stage_store(config, "preprocess").uri, "input_uri": ""}
    return corpus_config(tmp_path, data=data, embed=embed)


def make_encoder(config: Config, **section: bool) -> VectorEncoder:
    place = find_model("checkpoint", own=stage_store(config, "train"))
    model, _ = load_model(place, backbones=())
    return VectorEncoder(model, EmbedSection(**section), {}, num_regions=4, cached=FeatureShapes(4, 32))


def test_columns_left_out_are_null(config: Config) -> None:
    table = pairs_table(config)
    rows = make_encoder(config, thumbnails=False, region_weights=False).encode(table).outputs["image"]
    assert rows["thumbnail"].null_count == rows["region_weights"].null_count == 40
    rows = make_encoder(config).encode(table).outputs["image"]
    weights = np.array(rows["region_weights"].to_pylist(), np.float32)
    assert weights.shape == (40, 4) and (weights >= 0).all()


def test_a_vector_that_is_not_finite_rejects_the_item_with_its_captions(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, encoder = pairs_table(config).slice(0, 3), make_encoder(config)
    assert isinstance(encoder.model, DualEncoder)
    real = encoder.model.model.vectors

    def broken(side: SideOutput) -> torch.Tensor:
        vectors_BD = real(side).clone()
        vectors_BD[1, 0] = torch.nan  # image 1; of the captions (1 + 2 + 3) the second, which is item 1's
        return vectors_BD

    monkeypatch.setattr(encoder.model.model, "vectors", broken)
    encoded = encoder.encode(table)
    assert encoded.outputs["image"]["id"].to_pylist() == ["a.tar#0000", "a.tar#0002"]
    assert set(encoded.outputs["text"]["item_id"].to_pylist()) == {"a.tar#0000", "a.tar#0002"}
    assert [(row.id, row.code) for row in encoded.rejects] == [("a.tar#0001", "non_finite")]


def test_parts_without_rows_pass(config: Config) -> None:
    encoded = make_encoder(config).encode(pairs_table(config).slice(0, 0))
    assert {side: rows.num_rows for side, rows in encoded.outputs.items()} == {"image": 0, "text": 0}


def test_a_part_that_is_not_as_its_manifest_says_is_refused(config: Config) -> None:
    store = stage_store(config, "preprocess")
    source = FeatureSource(store, COLUMNS, 16)
    shard = shards_of(require_manifest(store, "preprocess"))[0]
    assert sum(chunk.num_in for chunk in source.read(shard)) == shard.num_rows
    with pytest.raises(DataError, match="not the one its manifest describes"):
        list(source.read(dataclasses.replace(shard, num_rows=7)))
    with pytest.raises(DataError, match="not the one its manifest describes"):
        list(source.read(dataclasses.replace(shard, key="manifest.json")))
