"""Vectors of other programs: normalised, named, rejected row by row, and layouts that must be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.clip_layout import exported, rows_of, write_foreign
from tests.embeddings_run import run_config, unit_vectors
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.manifest import read_manifest
from zscmr_ray.retrieval.gallery import Gallery
from zscmr_ray.stages.convert import import_clip_retrieval
from zscmr_ray.stages.index import run_index
from zscmr_ray.stages.verify import verify_run
from zscmr_ray.storage import Store


def test_foreign_vectors_are_normalised_indexed_and_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, texts = rng.normal(0, 7, (5, 8)), rng.normal(0, 7, (5, 8)).astype(np.float32)
    write_foreign(tmp_path / "clip", [(images.astype(np.float32), texts)], url=["u"] * 5)
    config = run_config(tmp_path / "run")
    target = Store(tmp_path / "run" / "embeddings")
    result = import_clip_retrieval(Store(tmp_path / "clip"), target, model_name="ViT-B/32")
    assert result.counts == {
        "filtered": 0,
        "image": 5,
        "in": 5,
        "out": 5,
        "rejected": 0,
        "shards": 1,
        "text": 5,
    }
    assert result.info["left_out"] == ["url"]
    assert result.info["foreign"]["model_name"] == "ViT-B/32"
    found = rows_of(target, "image")
    assert [row["id"] for row in found] == [f"{n:05d}" for n in range(5)]
    want = (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32)
    np.testing.assert_allclose(np.array([row["vector"] for row in found]), want, atol=5e-4)
    run_index(config)
    gallery = Gallery(tmp_path / "run" / "index" / "image")
    assert gallery.captions_of(3) == ("caption 3",)
    hits = gallery.index.search(want[3:4], k=1)
    assert gallery.id_of(int(hits.rows_QK[0, 0])) == "00003"


def test_another_name_or_another_source_is_another_fingerprint(tmp_path: Path) -> None:
    vectors = unit_vectors(4, seed=3)
    seen = set()
    for folder, values, name in (("a", vectors, "m"), ("b", vectors, "n"), ("c", vectors[::-1], "m")):
        write_foreign(tmp_path / folder, [(values, values)])
        target = Store(tmp_path / f"{folder}-out")
        seen.add(import_clip_retrieval(Store(tmp_path / folder), target, model_name=name).info["fingerprint"])
    assert len(seen) == 3
    write_foreign(tmp_path / "copy", [(vectors, vectors)])
    copied = import_clip_retrieval(Store(tmp_path / "copy"), Store(tmp_path / "copy-out"), model_name="m")
    assert copied.info["fingerprint"] in seen


def test_rows_that_cannot_be_used_are_rejected_with_their_reason(tmp_path: Path) -> None:
    images = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
    texts = images[::-1].copy()
    images[1], images[2, 0], texts[3, 1] = 0, np.nan, np.inf
    ids = ["a", "b", "c", "d", None, "a", "g", "h"]
    captions = [f"caption {n}" for n in range(7)] + ["  "]
    write_foreign(tmp_path / "clip", [(images, texts)], image_path=ids, caption=captions)
    target = Store(tmp_path / "out")
    # A row without a path and with a vector has no id.
    result = import_clip_retrieval(Store(tmp_path / "clip"), target, model_name="m", id_column="image_path")
    assert (result.counts["in"], result.counts["out"], result.counts["rejected"]) == (8, 3, 5)
    rejected = {row["offset"]: (row["code"], row["reason"]) for row in rows_of(target, "rejected")}
    assert rejected[1] == ("non_finite", "img_emb: a zero vector has no direction")
    assert rejected[2] == ("non_finite", "img_emb: NaN or infinity in the vector")
    assert rejected[3] == ("non_finite", "text_emb: NaN or infinity in the vector")
    assert rejected[4][0] == "bad_id" and rejected[5][0] == "duplicate_id"
    assert [row["id"] for row in rows_of(target, "image")] == ["a", "g", "h"]
    assert [row["id"] for row in rows_of(target, "text")] == ["a#0", "g#0"]
    assert verify_run(target.uri)[0].violations == []


def test_neighbours_with_one_id_are_captions_of_one_item(tmp_path: Path) -> None:
    image, text = unit_vectors(3, seed=1), unit_vectors(4, seed=2)
    write_foreign(
        tmp_path / "clip", [(image[[0, 0, 1, 2]], text)], id=["x", "x", "y", "y"], image_path=["p"] * 4
    )
    target = Store(tmp_path / "out")
    import_clip_retrieval(Store(tmp_path / "clip"), target, model_name="m")
    assert [row["id"] for row in rows_of(target, "image")] == ["x", "y"]
    assert [row["id"] for row in rows_of(target, "text")] == ["x#0", "x#1", "y#0"]
    assert [row["reason"] for row in rows_of(target, "rejected")] == [
        "the row before has the same id and another image vector"
    ]


def _broken_rows(folder: Path) -> None:
    np.save(folder / "text_emb/text_emb_0.npy", unit_vectors(3, seed=1))


def _broken_number(folder: Path) -> None:
    (folder / "text_emb/text_emb_0.npy").rename(folder / "text_emb/text_emb_1.npy")


def _torn(folder: Path) -> None:
    path = folder / "img_emb/img_emb_0.npy"
    path.write_bytes(path.read_bytes()[:-40])


def _pickled(folder: Path) -> None:
    np.save(folder / "img_emb/img_emb_0.npy", np.array([{}] * 4, object), allow_pickle=True)


def _no_parquet(folder: Path) -> None:
    (folder / "metadata/metadata_0.parquet").write_bytes(b"PAR1 not")


def _another_dimension(folder: Path) -> None:
    np.save(folder / "text_emb/text_emb_0.npy", np.ones((4, 3), np.float32))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_broken_rows, "different numbers of rows"),
        (_broken_number, "numbered file is missing"),
        (_torn, "cannot be read"),
        (_pickled, "cannot be read"),
        (_no_parquet, "metadata_0.parquet"),
        (_another_dimension, "different lengths"),
    ],
)
def test_a_broken_layout_is_a_data_error(damage: Any, said: str, tmp_path: Path) -> None:
    vectors = unit_vectors(4, seed=1)
    write_foreign(tmp_path / "clip", [(vectors, vectors)])
    damage(tmp_path / "clip")
    with pytest.raises(DataError, match=said):
        import_clip_retrieval(Store(tmp_path / "clip"), Store(tmp_path / "out"), model_name="m")
    assert read_manifest(Store(tmp_path / "out")) is None


def test_nobody_or_two_naming_the_model_is_refused(tmp_path: Path) -> None:
    vectors = unit_vectors(4, seed=1)
    write_foreign(tmp_path / "clip", [(vectors, vectors)])
    with pytest.raises(ConfigError, match="--model-name"):
        import_clip_retrieval(Store(tmp_path / "clip"), Store(tmp_path / "out"))
    with pytest.raises(ConfigError, match="no such metadata column"):
        import_clip_retrieval(
            Store(tmp_path / "clip"), Store(tmp_path / "out"), model_name="m", id_column="key"
        )
    _, target = exported(tmp_path)
    with pytest.raises(ConfigError, match="say themselves"):
        import_clip_retrieval(Store(target), Store(tmp_path / "out"), model_name="m")
