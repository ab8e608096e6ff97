"""Our tables read by libraries that are not ours: the very code blocks of docs/interop.md.

One fresh process per library, because the suite's own must not carry the threads of four native engines into its Ray
tests.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.embeddings_run import run_config, write_embeddings
from tests.pairs_run import PairsSpec, write_pairs
from zscmr_ray.config import Config
from zscmr_ray.schema import PARQUET_OPTIONS, duplicates_schema
from zscmr_ray.stages import stage_store

PAGE = Path(__file__).parents[1] / "docs" / "interop.md"
# How each library hands out a column of `table`.
COLUMN_OF = {
    "pyarrow": "table[name].to_pylist()",
    "pandas": "table[name].tolist()",
    "polars": "table[name].to_list()",
    "duckdb": "[row[0] for row in table.select(name).fetchall()]",
    "datasets": "list(table[name])",
    "lancedb": "table.to_arrow()[name].to_pylist()",
}
TEXT, IMAGE, PAIRS = "embeddings/text", "embeddings/image", "pairs"
COLUMNS = {
    TEXT: ("id", "item_id", "caption", "labels"),
    IMAGE: ("id", "labels", "sha256", "source_offset", "region_weights"),
    PAIRS: ("id", "captions", "labels", "partition"),
}
VECTORS = {TEXT: "vector", IMAGE: "vector", PAIRS: "prior_logits"}
# Keeps what a block read, as JSON; `default` turns the arrays of a cell into lists.
EPILOGUE = """
read[{table!r}] = json.loads(json.dumps({{
    "columns": {{name: {column} for name in {names!r}}}, "dtype": str(vectors.dtype), "shape": vectors.shape,
    "vectors": vectors.astype("float64").ravel().tolist()}}, default=list))
"""
# pairs/ is no directory of parquet files only: the parts are named, as the page says.
PARTS = 'sorted(glob.glob("runs/mine/pairs/part-*.parquet"))'


@pytest.mark.parametrize("table", [TEXT, IMAGE])
def test_the_block_on_the_page_reads_what_was_written(
    table: str, read: dict[str, Any], small_output: Path
) -> None:
    found, written = read[table], _written(small_output, table)
    order, wanted = np.argsort(found["columns"]["id"]), np.argsort(written["id"].to_pylist())
    for name in COLUMNS[table]:
        values = written[name].to_pylist()
        assert [found["columns"][name][n] for n in order] == [values[n] for n in wanted], name
    assert found["dtype"] in {"float16", "float32"}
    vectors = np.array(found["vectors"]).reshape(found["shape"])
    np.testing.assert_array_equal(vectors[order], _vectors(written, "vector")[wanted].astype(np.float64))


def test_pairs_are_read_with_captions_and_logits(read: dict[str, Any], small_output: Path) -> None:
    found, written = read[PAIRS], _written(small_output, PAIRS)
    rows = {row["id"]: row for row in written.to_pylist()}
    ids = found["columns"]["id"]
    assert sorted(ids) == sorted(rows)
    for name in ("captions", "labels", "partition"):
        assert found["columns"][name] == [rows[row_id][name] for row_id in ids], name
    wanted = np.array([rows[row_id]["prior_logits"] for row_id in ids], np.float64)
    np.testing.assert_array_equal(np.array(found["vectors"]).reshape(found["shape"]), wanted)


def test_the_block_on_duplicates_names_the_rows_to_drop(tmp_path: Path) -> None:
    _require("polars")
    schema = duplicates_schema({})
    rows = [
        {"id": name, "group": "a", "kind": kind, "score": 1.0, "keep": name == "a"}
        for kind in ("caption", "image_bytes")
        for name in ("a", "b")
    ]
    (tmp_path / "runs/mine/duplicates").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(rows, schema=schema), tmp_path / "runs/mine/duplicates/duplicates.parquet"
    )
    block = next(block for block in _blocks() if "dropped" in block)
    done = subprocess.run(
        [sys.executable, "-c", f"{block}\nprint(dropped)"],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    assert done.stdout.strip() == "['b']"


@pytest.fixture(scope="module", params=COLUMN_OF)
def read(
    request: pytest.FixtureRequest, small_output: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What one library reads of the three tables: its block run on each, in a process of its own."""
    library = request.param
    _require(library)
    folder = tmp_path_factory.mktemp(library)
    (folder / "runs").mkdir()
    (folder / "runs" / "mine").symlink_to(small_output)
    lines = ["import glob, json, numpy", "read = {}"]
    for table, names in COLUMNS.items():
        lines += [_block(library, table).replace("runs/mine/lance", f"lance-{Path(table).name}")]
        lines += [EPILOGUE.format(table=table, names=names, column=COLUMN_OF[library])]
    lines += ['json.dump(read, open("read.json", "w"))']
    environment = os.environ | {
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "POLARS_MAX_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads((folder / "read.json").read_text()))


@pytest.fixture(scope="module")
def small_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs and embeddings of one run, written as the stages write them: zstd, several row groups, a null column."""
    folder = tmp_path_factory.mktemp("output")
    config = run_config(folder)
    write_embeddings(config, num_items=40, captions_per_item=3)
    write_pairs(config, PairsSpec(num_classes=4, rows_per_class=5))
    _as_the_writer_does(config)
    return folder


def _as_the_writer_does(config: Config) -> None:
    for path in sorted(Path(stage_store(config, "embed").uri).rglob("*.parquet")):
        table = pq.read_table(path)
        if "region_weights" in table.column_names:
            at = table.schema.get_field_index("region_weights")
            # What a model without regions leaves: a column of Arrow's null type.
            table = table.set_column(at, "region_weights", pa.nulls(table.num_rows))
        pq.write_table(table, path, row_group_size=16, **PARQUET_OPTIONS)


def _block(library: str, table: str) -> str:
    """The library's block on the page, made to read another table."""
    block = next(block for block in _blocks() if re.match(rf"import {library}\b", block))
    if table != PAIRS:
        return str(block).replace(TEXT, table)
    if library == "pandas":
        block = re.sub(
            r"pandas\.read_parquet\(.*\)", f"pandas.concat(map(pandas.read_parquet, {PARTS}))", block
        )
    block = block.replace(f'"runs/mine/{TEXT}"', PARTS).replace(f"{TEXT}/*", "pairs/part-*")
    return str(block).replace('["vector"]', f'["{VECTORS[table]}"]')


def _require(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: pip install -c constraints.txt -e '.[test]'")


def _blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def _written(output: Path, table: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((output / table).glob("*.parquet"))])


def _vectors(table: pa.Table, name: str) -> npt.NDArray[np.float16]:
    return np.asarray(table[name].combine_chunks().flatten().to_numpy()).reshape(table.num_rows, -1)
