"""Features in a file are those in memory, read in any order; memory is bounded; a full disk is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pairs_run import TOKEN_CHANNELS, PairsSpec, make_tables
from zscmr_ray.data.file_rows import FileRows, RowFile, joined, rows_of
from zscmr_ray.data.pairs import PairFeatures, load_pair_features
from zscmr_ray.errors import StorageError


def filled(values: np.ndarray) -> FileRows:
    file = RowFile(values.shape[1:])
    return joined([file.append(part) for part in np.array_split(values, 3)])  # type: ignore[return-value]


def test_rows_are_those_of_the_array_in_any_order() -> None:
    values = np.random.default_rng(0).standard_normal((40, 3, 5)).astype(np.float16)
    rows = filled(values)
    assert rows.shape == values.shape and len(rows) == 40 and rows.nbytes == values.nbytes
    for index in (np.array([7, 8, 9, 3, 39, 0, 0, 1]), slice(5, 21), slice(None), np.array([], np.int64)):
        assert np.array_equal(rows[index], values[index])
    some = rows.take(np.array([30, 2, 3, 4]))
    assert np.array_equal(some[1:], values[[2, 3, 4]])
    assert np.array_equal(rows_of(some, np.array([3, 0]))[:], values[[4, 30]])


def test_a_short_read_is_continued_and_a_torn_file_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    values, whole = np.arange(24, dtype=np.float16).reshape(8, 3), os.preadv
    rows = filled(values)
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: whole(file, [buffers[0][:5]], at))
    assert np.array_equal(rows[1:7], values[1:7])
    os.ftruncate(rows.file._descriptor, 20)
    with pytest.raises(StorageError, match="ends early"):
        rows[:]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_names_the_remedy() -> None:
    file = RowFile((2,))
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file._descriptor)
    os.close(full)
    with pytest.raises(StorageError, match=r"No space left.*TMPDIR"):
        file.append(np.zeros((1, 2), np.float16))


def load(memory_bytes: int | None) -> PairFeatures:
    tables = make_tables(PairsSpec())
    tables = [tables[0].slice(start, 25) for start in range(0, 120, 25)]
    return load_pair_features(tables, num_regions=4, token_channels=TOKEN_CHANNELS, memory_bytes=memory_bytes)


@pytest.mark.parametrize("memory_bytes", [0, 8_000])
def test_batches_do_not_depend_on_where_features_are(memory_bytes: int) -> None:
    memory, file = load(None), load(memory_bytes)
    assert isinstance(file.regions_NRD, FileRows) and isinstance(file.prior_logits_NC, FileRows)
    assert isinstance(memory.regions_NRD, np.ndarray)
    for one, other in ((memory, file), (memory.select([90, 3, 4, 50]), file.select([90, 3, 4, 50]))):
        rows = [len(one) - 1, 0, 2]
        expected, found = one.batch(rows, [1, 0, 1]), other.batch(rows, [1, 0, 1])
        for name in ("regions_BRD", "tokens_BLD", "lengths_B", "prior_logits_BC", "row_keys_B"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert found.caption_keys == expected.caption_keys
        assert np.array_equal(other.tokens(2, 1), one.tokens(2, 1))


_CHILD = """
import sys
import numpy as np
import pyarrow as pa
from zscmr_ray.data.order import step_rows
from zscmr_ray.data.pairs import load_pair_features
from zscmr_ray.machine import peak_rss_bytes

ROWS, PER_TABLE, REGION_BYTES = 1000, 50, 50_000  # 50 MB of regions
def table(start):
    names = [str(row) for row in range(start, start + PER_TABLE)]
    values = pa.py_buffer(np.full(PER_TABLE * REGION_BYTES // 2, start, np.float16))
    return pa.table({
        "id": names,
        "regions": pa.FixedSizeBinaryArray.from_buffers(pa.binary(REGION_BYTES), PER_TABLE, [None, values]),
        "captions": [[name] for name in names],
        "tokens": [[bytes(4)]] * PER_TABLE,
        "labels": [["a"]] * PER_TABLE,
        "partition": ["train"] * PER_TABLE,
        "prior_logits": pa.nulls(PER_TABLE),
        "sha256": names,
    })
def use(num_rows):
    features = load_pair_features(
        (table(start) for start in range(0, num_rows, PER_TABLE)),
        num_regions=1, token_channels=2, memory_bytes=int(sys.argv[1]),
    )
    features = features.select(np.arange(0, num_rows, 2))
    for step in range(10):
        features.batch(step_rows(num_rows=len(features), global_batch_size=16, seed=0, step=step))
use(PER_TABLE)
before = peak_rss_bytes()
use(ROWS)
print(peak_rss_bytes() - before)
"""


def test_memory_is_bounded_by_the_setting_and_not_by_the_pairs() -> None:
    """The training rows of 50 MB of pairs, with a limit of 4 MB and without one."""

    def grown(memory_bytes: int) -> int:
        command = [sys.executable, "-c", _CHILD, str(memory_bytes)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert grown(4_000_000) < 25 << 20
    assert grown(1_000_000_000) > 50 << 20
