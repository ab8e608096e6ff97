"""Feature columns against the rows they were written from."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zscmr_ray.data.order import row_key
from zscmr_ray.data.pairs import PairFeatures, load_pair_features
from zscmr_ray.errors import DataError
from zscmr_ray.schema import PARQUET_OPTIONS, pairs_schema

R, D, T, C = 4, 6, 5, 3
Row = dict[str, object]


def make_rows(start: int, count: int, *, priors: bool = True) -> list[Row]:
    random = np.random.default_rng(start)
    rows: list[Row] = []
    for number in range(start, start + count):
        lengths = random.integers(1, 5, size=1 + number % 3)
        rows.append(
            {
                "id": f"s#{number}",
                "thumbnail": b"t%d" % number,
                "image": None,
                "regions": random.standard_normal((R, D)).astype(np.float16),
                "captions": [f"caption {number}.{n}" for n in range(len(lengths))],
                "tokens": [random.standard_normal((n, T)).astype(np.float16) for n in lengths],
                "labels": [f"class{number % 2}"] if number % 4 else [],
                "partition": ("train", "val", "test")[number % 3],
                "prior_logits": random.standard_normal(C).astype(np.float16) if priors else None,
                "source_shard": "s",
                "source_offset": number,
                "sha256": f"{number:064x}",
            }
        )
    return rows


def make_table(rows: list[Row], *, priors: bool = True) -> pa.Table:
    schema = pairs_schema(region_bytes=R * D * 2, num_classes=C if priors else None, metadata={})
    plain = [
        row
        | {
            "regions": np.asarray(row["regions"]).tobytes(),
            "tokens": [value.tobytes() for value in row["tokens"]],  # type: ignore[attr-defined]
        }
        for row in rows
    ]
    return pa.Table.from_pylist(plain, schema=schema)


def load(tables: list[pa.Table], **options: object) -> PairFeatures:
    return load_pair_features(tables, num_regions=R, token_channels=T, **options)  # type: ignore[arg-type]


def assert_same(found: PairFeatures, rows: list[Row]) -> None:
    assert found.ids == [row["id"] for row in rows]
    assert found.captions == [row["captions"] for row in rows]
    assert found.labels == [tuple(row["labels"]) for row in rows]  # type: ignore[arg-type]
    assert found.partition.tolist() == [row["partition"] for row in rows]
    assert found.image_hash == [row["sha256"] for row in rows]
    for number, row in enumerate(rows):
        assert np.array_equal(found.regions_NRD[number], row["regions"])
        assert np.array_equal(found.prior_logits_NC[number], row["prior_logits"])
        for caption, tokens in enumerate(row["tokens"]):  # type: ignore[arg-type, var-annotated]
            assert np.array_equal(found.tokens(number, caption), tokens)


def test_tables_of_several_chunks_and_slices_give_their_rows() -> None:
    rows = make_rows(0, 11)
    chunked = pa.concat_tables([make_table(rows[:3]), make_table(rows[2:8]).slice(1, 5)])
    found = load([chunked, make_table(rows[8:])])
    assert_same(found, rows)
    assert found.caption_item_M.tolist() == [n for n, row in enumerate(rows) for _ in row["captions"]]  # type: ignore[attr-defined]


def test_one_chunk_is_not_copied() -> None:
    table = make_table(make_rows(0, 4))
    found = load([table])
    address = table.column("regions").chunk(0).buffers()[1].address
    assert found.regions_NRD.ctypes.data == address


def test_kept_and_selected_rows() -> None:
    rows = make_rows(0, 11)
    kept = [row for row in rows if row["partition"] == "train"]
    found = load(
        [make_table(rows[:6]), make_table(rows[6:])],
        keep=lambda table: np.array([value == "train" for value in table.column("partition").to_pylist()]),
    )
    assert_same(found, kept)
    assert_same(load([make_table(rows)]).select([7, 2, 2]), [rows[7], rows[2], rows[2]])
    assert len(load([make_table(rows)]).select([])) == 0


def test_batch_is_padded_float32_with_stable_keys() -> None:
    rows = make_rows(0, 8)
    batch = load([make_table(rows)]).batch([5, 0, 2], [2, 0, 1])
    chosen = [(rows[5], 2), (rows[0], 0), (rows[2], 1)]
    longest = max(len(row["tokens"][n]) for row, n in chosen)  # type: ignore[index]
    assert batch.tokens_BLD.shape == (3, longest, T)
    for place, (row, caption) in enumerate(chosen):
        tokens = row["tokens"][caption]  # type: ignore[index]
        assert batch.lengths_B[place] == len(tokens)
        assert np.array_equal(batch.tokens_BLD[place, : len(tokens)].numpy(), tokens.astype(np.float32))
        assert not batch.tokens_BLD[place, len(tokens) :].any()
        assert batch.caption_keys[place] == row["captions"][caption]  # type: ignore[index]
        assert batch.row_keys_B[place] == row_key(str(row["id"]))
        assert np.array_equal(batch.regions_BRD[place].numpy(), row["regions"].astype(np.float32))  # type: ignore[attr-defined]
    assert batch.prior_logits_BC is not None and batch.prior_logits_BC.shape == (3, C)


def test_no_teacher_gives_no_priors() -> None:
    rows = make_rows(0, 3, priors=False)
    assert load([make_table(rows, priors=False)]).prior_logits_NC is None


def test_missing_features_and_other_shapes_are_errors() -> None:
    rows = make_rows(0, 3)
    with pytest.raises(DataError, match="without cached image features"):
        load([make_table(rows[:1]).set_column(3, "regions", pa.nulls(1))])
    with pytest.raises(DataError, match="another shape"):
        load_pair_features([make_table(rows)], num_regions=5, token_channels=T)
    with pytest.raises(DataError, match="another width"):
        load_pair_features([make_table(rows)], num_regions=R, token_channels=7)
    with pytest.raises(DataError, match="no pairs"):
        load([])


def test_empty_table_loads() -> None:
    assert len(load([make_table([])])) == 0


def test_a_thousand_items_load_quickly(tmp_path: object) -> None:
    """1,000 rows of 125 KB: a minute in a Python loop over features, under a second by column."""
    count, regions, channels = 1000, 49, 1280
    schema = pairs_schema(region_bytes=regions * channels * 2, num_classes=None, metadata={})
    value = np.zeros((regions, channels), np.float16).tobytes()
    row = make_rows(0, 1)[0] | {"regions": value, "tokens": [b"\0" * 20], "prior_logits": None}
    table = pa.Table.from_pylist([row] * count, schema=schema)
    path = f"{tmp_path}/part.parquet"
    pq.write_table(table, path, **PARQUET_OPTIONS)
    began_s = time.monotonic()
    found = load_pair_features([pq.read_table(path)], num_regions=regions, token_channels=T)
    assert len(found) == count
    assert time.monotonic() - began_s < 5.0
