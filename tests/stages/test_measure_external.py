"""Vectors made elsewhere on the run's own queries: found by id, held to the same captions, refused when they do not fit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.stages.small_run import small_config, write_checkpoint, write_pairs
from tests.tiny_duals import SIZE_PX, write_clip
from zscmr_ray.config import Config
from zscmr_ray.errors import ConfigError, DataError, RefusedError
from zscmr_ray.manifest import Manifest, StageKey, part_record, write_manifest
from zscmr_ray.retrieval.protocol import ClassGroups, evaluate_method
from zscmr_ray.retrieval.searches import Corpus, Towers
from zscmr_ray.schema import image_embeddings_schema, text_embeddings_schema
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.evaluate import run_evaluate
from zscmr_ray.stages.measure.external import External, external_rows, find_externals
from zscmr_ray.stages.measure.rows import EncodedRows
from zscmr_ray.storage import Store

ONE_BLOCK = ({"name": "global", "start": 0, "stop": 8},)
TWO_BLOCKS = ({"name": "region", "start": 0, "stop": 5}, {"name": "label", "start": 5, "stop": 8})


def write_embeddings(
    folder: Path,
    ids: Sequence[str],
    texts: Sequence[tuple[str, str]],
    *,
    blocks: Sequence[dict[str, object]] = ONE_BLOCK,
    vectors: dict[str, np.ndarray] | None = None,
    fingerprints: tuple[str, str] = ("a" * 64, "a" * 64),
) -> dict[str, np.ndarray]:
    """Two parts a side in an order of their own, as `zscmr embed` writes them; returns the vectors by the given order."""
    store, rng = Store(folder), np.random.default_rng(4)
    columns = {
        "image": {"id": list(ids)},
        "text": {"id": [name for name, _ in texts], "caption": [caption for _, caption in texts]},
    }
    drawn = {side: rng.standard_normal((len(rows["id"]), 8)) for side, rows in columns.items()}
    values = {side: (vectors or drawn)[side].astype(np.float16) for side in columns}
    records = []
    for side, rows in columns.items():
        order = np.random.default_rng(5).permutation(len(rows["id"]))
        half = len(order) // 3
        for number, chosen in enumerate((order[:half], order[half:])):
            metadata = {"fingerprint": fingerprints[number], "blocks": list(blocks)}
            schema = (
                image_embeddings_schema(dimension=8, num_regions=None, metadata=metadata)
                if side == "image"
                else text_embeddings_schema(dimension=8, metadata=metadata)
            )
            made: dict[str, object] = {name: [column[row] for row in chosen] for name, column in rows.items()}
            made["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(values[side][chosen].ravel()), 8)
            made |= {
                "labels": [[]] * len(chosen),
                "item_id": ["?"] * len(chosen),
                "thumbnail": [None] * len(chosen),
            }
            made |= {name: [None] * len(chosen) for name in ("region_weights", "sha256")}
            made |= {"source_shard": ["s"] * len(chosen), "source_offset": [0] * len(chosen)}
            table = pa.table({name: made[name] for name in schema.names}, schema=schema)
            name = f"{side}/part-{number:016x}.parquet"
            with store.open_write(name) as file:
                pq.write_table(table, file)
            records.append(part_record(store, name, rows=table.num_rows))
    key = StageKey(stage="embed", config={}, input_fingerprint="none")
    info = {"fingerprint": fingerprints[0], "image_backbone": {"id": "CLIPModel"}}
    write_manifest(store, Manifest(key=key, config_hash=key.config_hash, parts=records, info=info))
    return {side: found.astype(np.float32) for side, found in values.items()}


def make_rows() -> EncodedRows:
    corpus = Corpus(
        ids=[f"i{row}" for row in range(9)],
        labels=[("a",)] * 9,
        partition_N=np.array(["train"] * 6 + ["test"] * 3),
        text_item_M=np.repeat(np.arange(9), 2),
    )
    nothing = np.zeros((0, 0), np.float32)
    captions = [f"words {row}" for row in range(18)]
    return EncodedRows(corpus, captions, nothing, nothing, None, nothing, nothing, None, None)


def texts_of(rows: EncodedRows) -> list[tuple[str, str]]:
    return list(zip(rows.corpus.text_ids(), rows.captions, strict=True))


def test_vectors_are_found_by_id_whatever_their_order_and_what_else_is_there(tmp_path: Path) -> None:
    rows = make_rows()
    more = [*texts_of(rows), ("other#0", "not evaluated")]
    values = write_embeddings(tmp_path / "run" / "embeddings", [*rows.corpus.ids, "other"], more)
    (external,) = find_externals([f"clip={tmp_path / 'run'}"])
    (row,) = external_rows([external], rows, label_weight=None)
    assert isinstance(row.towers, Towers)
    np.testing.assert_array_equal(row.towers.image_query_ND, values["image"][:9])
    np.testing.assert_array_equal(row.towers.text_gallery_MD, values["text"][:18])
    assert (row.key, row.name) == ("external_clip", f"clip (CLIPModel {'a' * 12}, as embedded)")
    assert find_externals([f"clip={tmp_path / 'run' / 'embeddings'}"])[0].manifest == external.manifest


def test_two_blocks_give_two_rows_and_a_fused_one_only_with_a_weight(tmp_path: Path) -> None:
    rows = make_rows()
    values = write_embeddings(tmp_path, rows.corpus.ids, texts_of(rows), blocks=TWO_BLOCKS)
    found = external_rows(find_externals([f"x={tmp_path}"]), rows, label_weight=None)
    assert [one.key for one in found] == ["external_x_regions", "external_x_labels"]
    fused = external_rows(find_externals([f"x={tmp_path}"]), rows, label_weight=0.25)[-1]
    assert isinstance(fused.towers, Towers)
    np.testing.assert_allclose(fused.towers.image_query_ND[:, 5:], 0.25 * values["image"][:, 5:])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    rows = make_rows()

    def read(name: str) -> None:
        external_rows(find_externals([f"x={tmp_path / name}"]), rows, label_weight=None)

    write_embeddings(tmp_path / "few", rows.corpus.ids[:-2], texts_of(rows))
    with pytest.raises(DataError, match=r"2 of 9 missing .* such as i7, i8"):
        read("few")
    write_embeddings(
        tmp_path / "words", rows.corpus.ids, [(name, text.upper()) for name, text in texts_of(rows)]
    )
    with pytest.raises(DataError, match=r"another caption .* 'WORDS .* 'words "):
        read("words")
    write_embeddings(tmp_path / "mixed", rows.corpus.ids, texts_of(rows), fingerprints=("a" * 64, "b" * 64))
    with pytest.raises(RefusedError, match="never mixed"):
        read("mixed")
    with pytest.raises(DataError, match="embed is not complete"):
        read("absent")


@pytest.mark.parametrize("entries", [["no separator"], ["=x"], ["a="], ["a b=x"], ["a=one", "a=two"]])
def test_entries_that_are_none_are_named(
    entries: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = External(
        "a",
        Store(tmp_path),
        Manifest(key=StageKey(stage="embed", config={}, input_fingerprint=""), config_hash=""),
    )
    monkeypatch.setattr("zscmr_ray.stages.measure.external.require_manifest", lambda *_: found.manifest)
    with pytest.raises(ConfigError, match="names each directory once"):
        find_externals(entries)


def embed_with_clip(config: Config, clip: Path, folder: Path) -> dict[str, np.ndarray]:
    """What `zscmr embed` would write of the small run's rows, from their thumbnails."""
    from zscmr_ray.models.pretrained_dual import load_pretrained_dual

    store, encoder = stage_store(config, "preprocess"), load_pretrained_dual(str(clip))
    ids, texts, pictures = [], [], []
    for part in ("part-a.parquet", "part-b.parquet"):
        with store.open(part) as file:
            table = pq.read_table(file, columns=["id", "captions", "thumbnail"])
        for row in table.to_pylist():
            picture = Image.open(io.BytesIO(row["thumbnail"])).convert("RGB").resize((SIZE_PX, SIZE_PX))
            ids.append(row["id"])
            pictures.append(np.asarray(picture))
            texts += [(f"{row['id']}#{n}", caption) for n, caption in enumerate(row["captions"])]
    image_ND, _ = encoder.encode_images(torch.from_numpy(np.stack(pictures)))
    text_MD, _ = encoder.encode_texts([caption for _, caption in texts])
    return write_embeddings(
        folder,
        ids,
        texts,
        vectors={"image": image_ND.numpy(), "text": text_MD.numpy()},
        fingerprints=(encoder.fingerprint,) * 2,
    )


def test_a_pretrained_dual_encoder_stands_in_the_table(tmp_path: Path) -> None:
    plain = small_config(str(tmp_path / "run"))
    write_pairs(plain)
    write_checkpoint(plain)
    values = embed_with_clip(plain, write_clip(tmp_path / "clip"), tmp_path / "vectors")
    config = small_config(str(tmp_path / "run"), embeddings=(f"clip={tmp_path / 'vectors'}",))
    run_evaluate(config)
    report = stage_store(config, "evaluate").read_json("report.json")
    (row,) = [one for one in report["methods"] if one["key"] == "external_clip"]
    assert set(row["classes"]) == {"U|U", "S|S", "U|all", "S|all", "H"}
    assert row["name"].startswith("clip (CLIPModel ")
    assert any("clip: vectors made outside" in note for note in report["notes"])
    # The same numbers as from the vectors themselves, on the rows of the run.
    ours = report["methods"][0]["classes"]["U|U"]["average"]
    assert row["classes"]["U|U"]["average"]["chance"] == ours["chance"]
    assert evaluate_directly(plain, values)["map"] == pytest.approx(row["classes"]["U|U"]["average"]["map"])
    assert run_evaluate(config).skipped
    # Other vectors under the same name are another input.
    write_embeddings(tmp_path / "vectors", ["none"], [("none#0", "")])
    with pytest.raises(RefusedError):
        run_evaluate(config)


def evaluate_directly(config: Config, values: dict[str, np.ndarray]) -> dict[str, float]:
    from tests.stages.small_run import CLASS_NAMES
    from zscmr_ray.data.splits import make_class_split

    store = stage_store(config, "preprocess")
    tables = []
    for part in ("part-a.parquet", "part-b.parquet"):
        with store.open(part) as file:
            tables.append(pq.read_table(file, columns=["id", "labels", "partition", "captions"]))
    table = pa.concat_tables(tables)
    corpus = Corpus(
        ids=table["id"].to_pylist(),
        labels=[tuple(names) for names in table["labels"].to_pylist()],
        partition_N=np.array(table["partition"].to_pylist()),
        text_item_M=np.repeat(np.arange(table.num_rows), [len(row) for row in table["captions"].to_pylist()]),
    )
    split = make_class_split(dict.fromkeys(CLASS_NAMES, 20), "even_odd", pseudo_unseen_fraction=0.25)
    towers = Towers.symmetric(values["image"], values["text"])
    seen = split.trained(refit=False)
    held_out = tuple(name for name in split.pseudo_unseen if name not in seen)
    found = evaluate_method(towers, corpus, ClassGroups(seen, split.unseen, held_out), num_resamples=100)
    average: dict[str, float] = found["classes"]["U|U"]["average"]
    return average
