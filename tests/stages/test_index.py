"""The index of a small embeddings directory: order, captions, recall, and everything that must be refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.embeddings_run import (
    BLOCKS,
    COLOURS,
    FINGERPRINT,
    item_ids,
    jpeg,
    run_config,
    unit_vectors,
    write_embeddings,
)
from zscmr_ray.errors import DataError, RefusedError
from zscmr_ray.manifest import require_manifest
from zscmr_ray.retrieval.gallery import Gallery
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.index import run_index


def test_rows_lie_in_id_order_with_their_vectors_captions_and_thumbnails(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    write_embeddings(config, num_items=24, captions_per_item=12)
    result = run_index(config)
    assert result.counts == {"image": 24, "text": 288}
    gallery = Gallery(tmp_path / "index" / "image")
    ids = [gallery.id_of(row) for row in range(24)]
    assert ids == sorted(item_ids(24))
    vectors = unit_vectors(24, seed=1).astype(np.float32)
    for number, item_id in enumerate(item_ids(24)):
        row = gallery.row_of(item_id)
        assert row is not None
        np.testing.assert_array_equal(gallery.vector_of(row), vectors[number])
        # Captions keep their own order: the tenth comes after the ninth, not after the first.
        assert gallery.captions_of(row) == tuple(f"caption {c} of item {number}" for c in range(12))
        assert gallery.thumbnail_of(row) == (jpeg(COLOURS[number % 3]) if number else None)
    texts = Gallery(tmp_path / "index" / "text")
    row = texts.row_of(f"{item_ids(24)[5]}#11")
    assert row is not None
    assert texts.item_id_of(row) == item_ids(24)[5]
    assert texts.captions_of(row) == ("caption 11 of item 5",)
    assert gallery.row_of("nothing") is None
    assert gallery.row_of("zzz") is None


def test_the_manifest_says_which_model_and_how_good(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    write_embeddings(config)
    run_index(config)
    manifest = require_manifest(stage_store(config, "index"), "index")
    assert manifest.info["fingerprint"] == FINGERPRINT
    assert manifest.info["blocks"] == BLOCKS
    assert manifest.info["dimension"] == 10
    assert manifest.info["recall_at_10"] == {
        "image->image": 1.0,
        "image->text": 1.0,
        "text->image": 1.0,
        "text->text": 1.0,
    }
    for part in manifest.parts:
        assert stage_store(config, "index").sha256(part.name) == part.sha256


@pytest.mark.parametrize("side", ["image", "text"])
def test_either_side_may_be_absent(tmp_path: Path, side: str) -> None:
    config = run_config(tmp_path)
    write_embeddings(config, sides=[side])
    result = run_index(config)
    assert result.info["recall_at_10"] == {f"{side}->{side}": 1.0}
    assert [
        path.name for path in (tmp_path / "index").iterdir() if path.is_dir() and path.name != "_lease"
    ] == [side]


def test_a_second_run_returns_at_once_and_changed_input_is_refused(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    write_embeddings(config)
    first = run_index(config)
    again = run_index(config)
    assert (first.skipped, again.skipped) == (False, True)
    assert again.info["index_version"] == first.info["index_version"]
    write_embeddings(config, num_items=15)
    with pytest.raises(RefusedError, match="input"):
        run_index(config)
    assert run_index(config, overwrite=True).counts["image"] == 15


def test_the_same_embeddings_give_the_same_bytes(tmp_path: Path) -> None:
    versions = []
    for name in ("a", "b"):
        config = run_config(tmp_path / name)
        write_embeddings(config)
        versions.append(run_index(config).info["index_version"])
    assert versions[0] == versions[1]


def test_two_models_are_refused_with_both_hashes(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    write_embeddings(config, fingerprints=("ab" * 32, "cd" * 32))
    with pytest.raises(RefusedError) as caught:
        run_index(config)
    assert "ab" * 32 in str(caught.value)
    assert "cd" * 32 in str(caught.value)
    assert not stage_store(config, "index").exists("manifest.json")


def test_an_id_in_two_shards_is_named(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    write_embeddings(config, ids=["a", "b", "c", "b"], sides=["image"])
    with pytest.raises(DataError, match="1 of them: b") as caught:
        run_index(config)
    assert "data.columns.id" in str(caught.value.remedy)


def test_a_damaged_part_and_missing_embeddings_are_named(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    with pytest.raises(DataError, match="zscmr embed"):
        run_index(config)
    write_embeddings(config)
    part = next((tmp_path / "embeddings" / "text").glob("part-*"))
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(DataError, match=part.name):
        run_index(config)
