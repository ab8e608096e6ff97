"""Embedding from cached features, kept images and raw shards, of pairs, images and texts: the same vectors, any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.stages.corpus import bad_samples, corpus_config, good_samples, jpeg, write_tar
from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from tests.stages.numbers import digests
from tests.stages.small_run import write_checkpoint
from tests.tiny_duals import DIM, write_clip
from zscmr_ray.config import Config
from zscmr_ray.errors import ConfigError, DataError, RefusedError
from zscmr_ray.manifest import require_manifest
from zscmr_ray.models.pretrained_dual import load_pretrained_dual
from zscmr_ray.retrieval.gallery import Gallery
from zscmr_ray.schema import part_name, provenance_of
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.embed.plan import plan_embed
from zscmr_ray.stages.evaluate import run_evaluate
from zscmr_ray.stages.index import run_index
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.stages.shards.source import ShardSource
from zscmr_ray.stages.train import run_train

pytestmark = pytest.mark.usefixtures("inline_plane")

SHARDS = {"a.tar": 40, "sub/b.tar": 5}
NUM_CAPTIONS = sum(1 + row % 3 for rows in SHARDS.values() for row in range(rows))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, the second with all the bad rows; a finished run with a checkpoint is `trained`."""
    root = tmp_path_factory.mktemp("sources")
    for number, (key, rows) in enumerate(SHARDS.items()):
        write_tar(root / "shards" / key, good_samples(number, rows) + (bad_samples() if number else []))
    write_checkpoint(corpus_config(root, "trained"), labelled=True)
    return root


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "model")


def run_of(root: Path, tmp_path: Path, name: str, *, model: str | Path = "", **sections: Any) -> Config:
    """A run in the test's own folder over the shared shards, with the trained run's model."""
    embed = {"model": str(model or root / "trained")} | sections.pop("embed", {})
    data = {"run_uri": str(tmp_path / name)} | sections.pop("data", {})
    return corpus_config(root, data=data, embed=embed, **sections)


def tables(config: Config, side: str) -> list[pa.Table]:
    store = stage_store(config, "embed")
    return [pq.read_table(store.path(f"{side}/{part_name(key)}")) for key in SHARDS]


def parts(config: Config) -> set[str]:
    return {part.name for part in require_manifest(stage_store(config, "embed"), "embed").parts}


def test_raw_shards_give_the_vectors_of_cached_features_byte_for_byte(root: Path, tmp_path: Path) -> None:
    cached, raw = run_of(root, tmp_path, "cached"), run_of(root, tmp_path, "raw")
    run_preprocess(cached)
    first, second = run_embed(cached), run_embed(raw)
    assert (first.info["features"], second.info["features"]) == ("cached", "computed")
    assert first.info["fingerprint"] == second.info["fingerprint"]
    for side in ("image", "text"):
        for one, other in zip(tables(cached, side), tables(raw, side), strict=True):
            assert one.num_rows and one.equals(other)  # thumbnails, weights, labels and ids too
    counts = {name: second.counts[name] for name in ("in", "out", "rejected", "image", "text")}
    assert counts == {"in": 50, "out": 45, "rejected": 5, "image": 45, "text": NUM_CAPTIONS}


def test_the_same_bytes_again_and_a_second_run_returns_at_once(root: Path, tmp_path: Path) -> None:
    first, second = run_of(root, tmp_path, "first"), run_of(root, tmp_path, "second")
    run_embed(first)
    run_embed(second)
    assert digests(stage_store(first, "embed")) == digests(stage_store(second, "embed"))
    assert run_embed(first).skipped


def test_faster_options_change_vectors_a_little_and_are_refused_over_a_finished_run(tmp_path: Path) -> None:
    samples = [
        (f"{row}", {"jpg": jpeg(row, width=520, height=512), "txt": b"a caption of a picture"})
        for row in range(6)
    ]
    write_tar(tmp_path / "shards" / "a.tar", samples)
    write_checkpoint(corpus_config(tmp_path, "trained"), labelled=True)
    large = {"max_pixels": 1_000_000}
    exact = run_of(tmp_path, tmp_path, "run", data=large)
    run_embed(exact)
    store = stage_store(exact, "embed")
    options: list[dict[str, dict[str, Any]]] = [
        {"data": large, "embed": {"precision": "bf16"}},
        {"data": large | {"scaled_jpeg": True}},
    ]
    for number, option in enumerate(options):
        with pytest.raises(RefusedError):
            run_embed(run_of(tmp_path, tmp_path, "run", **option))
        faster = run_of(tmp_path, tmp_path, f"faster-{number}", **option)
        run_embed(faster)
        exact_ND, near_ND = (
            np.array(pq.read_table(one.path(f"image/{part_name('a.tar')}"))["vector"].to_pylist(), np.float32)
            for one in (store, stage_store(faster, "embed"))
        )
        assert near_ND.shape == exact_ND.shape == (6, exact_ND.shape[1]) and not np.array_equal(
            near_ND, exact_ND
        )
        lengths_N = np.linalg.norm(near_ND, axis=1) * np.linalg.norm(exact_ND, axis=1)
        assert ((near_ND * exact_ND).sum(1) / lengths_N).min() > 0.9


def test_a_pretrained_dual_encoder_embeds_shards_without_any_training(
    root: Path, clip: Path, tmp_path: Path
) -> None:
    config = run_of(root, tmp_path, "clip", model=f"hf:{clip}")
    result = run_embed(config)
    encoder = load_pretrained_dual(str(clip))
    assert result.info["fingerprint"] == encoder.fingerprint
    assert result.info["blocks"] == [{"name": "global", "start": 0, "stop": DIM}]
    assert result.info["model"] == f"hf:{clip}"
    texts = tables(config, "text")[0]
    want = encoder.encode_texts(texts["caption"].to_pylist()[:7])[0].numpy()
    np.testing.assert_allclose(np.array(texts["vector"].to_pylist()[:7], np.float32), want, atol=2e-3)
    images = tables(config, "image")[0]
    norms = np.linalg.norm(np.array(images["vector"].to_pylist(), np.float32), axis=1)
    np.testing.assert_allclose(norms, 1, atol=2e-3)
    assert images["region_weights"].null_count == images.num_rows
    provenance = provenance_of(images.schema)
    assert provenance["fingerprint"] == encoder.fingerprint and str(clip) not in str(provenance)


def test_kept_images_of_pairs_serve_a_model_that_made_none_of_their_features(
    root: Path, clip: Path, tmp_path: Path
) -> None:
    kept = run_of(root, tmp_path, "kept", model=f"hf:{clip}", preprocess={"keep_images": True})
    raw = run_of(root, tmp_path, "raw", model=f"hf:{clip}", embed={"source": "shards"})
    run_preprocess(kept)
    assert run_embed(kept).info["features"] == "computed"
    run_embed(raw)
    for side in ("image", "text"):
        for one, other in zip(tables(kept, side), tables(raw, side), strict=True):
            assert one.num_rows and one.equals(other)


def test_features_of_another_model_without_kept_images_are_refused(
    root: Path, clip: Path, tmp_path: Path
) -> None:
    config = run_of(root, tmp_path, "run", model=f"hf:{clip}")
    run_preprocess(config)
    with pytest.raises(RefusedError, match="images were not kept") as caught:
        run_embed(config)
    assert load_pretrained_dual(str(clip)).weights_sha256 in str(caught.value)
    assert "embed.source=shards" in str(caught.value.remedy)
    shards = run_of(root, tmp_path, "run", model=f"hf:{clip}", embed={"source": "shards"})
    assert run_embed(shards).counts["image"] == 45


def test_pairs_of_another_input_are_not_embedded_unasked(root: Path, tmp_path: Path) -> None:
    config = run_of(root, tmp_path, "run")
    run_preprocess(config)
    write_tar(tmp_path / "new/c.tar", good_samples(9, 3))
    new = {"input_uri": str(tmp_path / "new")}
    with pytest.raises(ConfigError, match=r"not of data\.input_uri"):
        run_embed(run_of(root, tmp_path, "run", data=new))
    assert (
        run_embed(run_of(root, tmp_path, "run", data={"input_uri": str(tmp_path / "gone")})).counts["in"]
        == 45
    )
    other = run_of(root, tmp_path, "other", data=new)
    assert run_embed(other).counts["image"] == 3


@pytest.mark.parametrize("where", ["trained", "trained/checkpoint"])
def test_a_checkpoint_is_named_by_its_run_or_its_own_folder(root: Path, tmp_path: Path, where: str) -> None:
    result = run_embed(run_of(root, tmp_path, "run", model=root / where))
    assert result.info["model"] == stage_store(corpus_config(root, "trained"), "train").uri


@pytest.mark.parametrize("prepared", [True, False])
def test_an_image_only_corpus(root: Path, tmp_path: Path, prepared: bool) -> None:
    """Captions are not read, and those that are missing or empty reject nothing."""
    config = run_of(root, tmp_path, "run", data={"modality": "image"})
    if prepared:
        done = run_preprocess(config)
        table = pq.read_table(stage_store(config, "preprocess").path(part_name("a.tar")))
        assert table["captions"].to_pylist() == table["tokens"].to_pylist() == [[]] * 40
        assert done.info["text_backbone"] is None
        assert (done.counts["out"], done.counts["rejected"]) == (46, 4)  # the row without a caption is in
    result = run_embed(config)
    assert (result.counts["out"], result.counts["rejected"]) == (46, 0 if prepared else 4)
    assert "text" not in result.counts
    assert parts(config) == {f"image/{part_name(key)}" for key in SHARDS} | (
        set() if prepared else {f"rejected/{part_name('sub/b.tar')}"}
    )
    pairs = run_of(root, tmp_path, "pairs")
    run_embed(pairs)
    assert tables(config, "image")[0]["vector"].equals(tables(pairs, "image")[0]["vector"])
    assert run_index(config).info["recall_at_10"] == {"image->image": 1.0}


@pytest.mark.parametrize("prepared", [True, False])
def test_a_text_only_corpus(root: Path, tmp_path: Path, prepared: bool) -> None:
    """Images are not read: broken, empty and huge ones reject nothing. Items are counted, not captions."""
    config = run_of(root, tmp_path, "run", data={"modality": "text"})
    if prepared:
        done = run_preprocess(config)
        table = pq.read_table(stage_store(config, "preprocess").path(part_name("a.tar")))
        assert pa.types.is_null(table.schema.field("regions").type)
        assert table["thumbnail"].null_count == table["sha256"].null_count == 40
        assert done.info["image_backbone"] is None and done.info["teacher"] is None
        assert done.counts["rejected"] == done.counts["rejected_empty_caption"] == 1
    result = run_embed(config)
    assert (result.counts["out"], result.counts["text"]) == (49, NUM_CAPTIONS + 4)
    assert "image" not in result.counts
    assert {name.partition("/")[0] for name in parts(config)} - {"rejected"} == {"text"}
    ids = tables(config, "text")[0]["id"].to_pylist()
    assert ids[:4] == ["a.tar#0000#0", "a.tar#0001#0", "a.tar#0001#1", "a.tar#0002#0"]
    pairs = run_of(root, tmp_path, "pairs")
    run_embed(pairs)
    assert tables(config, "text")[0].equals(tables(pairs, "text")[0])
    run_index(config)
    gallery = Gallery(tmp_path / "run/index/text")
    assert gallery.num_rows == NUM_CAPTIONS + 4
    assert gallery.captions_of(gallery.row_of("a.tar#0001#1") or 0) == ("two words",)


def test_one_sided_corpora_of_a_pretrained_model(root: Path, clip: Path, tmp_path: Path) -> None:
    both = run_of(root, tmp_path, "both", model=f"hf:{clip}")
    run_embed(both)
    for side in ("image", "text"):
        config = run_of(root, tmp_path, side, model=f"hf:{clip}", data={"modality": side})
        run_embed(config)
        assert tables(config, side)[0].equals(tables(both, side)[0])


@pytest.mark.parametrize("modality", ["image", "text"])
def test_training_and_evaluation_need_both_sides(root: Path, tmp_path: Path, modality: str) -> None:
    config = run_of(root, tmp_path, "run", data={"modality": modality})
    run_preprocess(config)
    for run in (run_train, run_evaluate):
        with pytest.raises(DataError, match=f"data.modality={modality}"):
            run(config)


def test_no_thumbnail_is_made_where_none_is_kept(root: Path, tmp_path: Path) -> None:
    config = run_of(root, tmp_path, "run", embed={"thumbnails": False})
    plan = plan_embed(config)
    assert isinstance(plan.source, ShardSource) and plan.source.thumbnail_px is None
    chunk = next(plan.source.read(plan.shards[0]))
    assert chunk.table["thumbnail"].null_count == chunk.table.num_rows
    kept = plan_embed(run_of(root, tmp_path, "run")).source
    assert isinstance(kept, ShardSource) and kept.thumbnail_px == 256


def test_chunks_keep_the_memory_of_their_pixels(root: Path, tmp_path: Path) -> None:
    """The tensor a model sees is the chunk's own memory: nothing between decoding and encoding copied it."""
    from zscmr_ray.stages.plane.encode import shared_tensor
    from zscmr_ray.stages.shards.pixels import PIXELS, pixels_array

    plan = plan_embed(run_of(root, tmp_path, "run"))
    table = next(plan.source.read(plan.shards[0])).table
    tensor = shared_tensor(pixels_array(table, size_px=224))
    assert tensor.data_ptr() == table[PIXELS].chunk(0).buffers()[1].address
    assert tensor.shape == (16, 224, 224, 3) and tensor.dtype == torch.uint8
