"""Region weights and projected regions from embeddings through the index, by id; and what cannot be kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.serving.imfa_run import NUM_ITEMS, imfa_run
from tests.stages.corpus import corpus_config
from tests.stages.small_run import write_checkpoint
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.manifest import require_manifest
from zscmr_ray.retrieval.gallery import Gallery
from zscmr_ray.retrieval.region_store import REGIONS, WEIGHTS, RegionStore, RegionWriter, region_files
from zscmr_ray.schema import file_metadata
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed.plan import plan_embed


def region_table(values: list[int], *, shape: tuple[int, int] = (4, 3), weights: bool = True) -> pa.Table:
    """Rows whose every number is the row's value."""
    rows = [np.full(shape, value, "<f2") for value in values]
    columns = {"regions": pa.array([row.tobytes() for row in rows], pa.binary(2 * shape[0] * shape[1]))}
    if weights:
        flat = pa.array(np.repeat(np.array(values, np.float16), shape[0]))
        columns["region_weights"] = pa.FixedSizeListArray.from_arrays(flat, shape[0])
    return pa.table(columns).replace_schema_metadata(file_metadata({"region_shape": shape}))


def test_rows_come_back_in_the_order_that_was_told(tmp_path: Path) -> None:
    with RegionWriter(tmp_path) as writer:
        for values in ([3, 1], [], [2]):
            writer.add(region_table(values))
    writer.finish(np.array([1, 2, 0], np.uint64))
    assert region_files(tmp_path) == (WEIGHTS, REGIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((WEIGHTS, REGIONS))
    store = RegionStore(tmp_path, num_rows=3)
    assert store.regions_NRD is not None and store.weights_NR is not None
    assert store.regions_NRD.shape == (3, 4, 3) and store.regions_NRD[:, 0, 0].tolist() == [1, 2, 3]
    assert store.weights_NR.shape == (3, 4) and store.weights_NR[:, 3].tolist() == [1, 2, 3]
    with pytest.raises(DataError, match="disagree"):
        RegionStore(tmp_path, num_rows=4)
    (tmp_path / REGIONS).write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        RegionStore(tmp_path, num_rows=3)


def test_parts_that_were_made_differently_are_refused_and_nothing_is_kept_of_nothing(tmp_path: Path) -> None:
    with RegionWriter(tmp_path) as writer:
        writer.add(region_table([1]))
        with pytest.raises(DataError, match="another shape"):
            writer.add(region_table([2], shape=(9, 3)))
        with pytest.raises(DataError, match="none"):
            writer.add(region_table([2], weights=False))
    with RegionWriter(tmp_path / "none") as empty:
        empty.add(pa.table({"id": ["a"]}))
    empty.finish(np.array([0], np.uint64))
    store = RegionStore(tmp_path / "none", num_rows=1)
    assert store.regions_NRD is None and store.weights_NR is None


def test_an_index_holds_what_embed_kept_of_each_item(tmp_path: Path) -> None:
    config = imfa_run(tmp_path)
    manifest = require_manifest(stage_store(config, "index"), "index")
    assert {"image/regions.npy", "image/region_weights.npy"} <= {part.name for part in manifest.parts}
    gallery = Gallery(Path(config.data.run_uri) / "index/image")
    assert gallery.regions.regions_NRD is not None and gallery.regions.weights_NR is not None
    assert gallery.regions.regions_NRD.shape == (NUM_ITEMS, 4, 16)
    for part in (Path(config.data.run_uri) / "embeddings/image").glob("part-*"):
        for row in pq.read_table(part).to_pylist():
            number = gallery.row_of(row["id"])
            assert gallery.regions.regions_NRD[number].tobytes() == row["regions"]
            assert gallery.regions.weights_NR[number].tolist() == row["region_weights"]
    assert manifest.info["crop"] == {"fit": "crop", "fraction": 0.875}


def test_without_the_setting_there_is_no_column_and_another_method_is_refused(tmp_path: Path) -> None:
    config = imfa_run(tmp_path / "plain", regions=False)
    assert not (Path(config.data.run_uri) / "index/image" / REGIONS).exists()
    part = next((Path(config.data.run_uri) / "embeddings/image").glob("part-*"))
    assert "regions" not in pq.read_schema(part).names
    other = corpus_config(tmp_path / "plain", "fgan", embed={"regions": True, "source": "shards"})
    write_checkpoint(other)
    with pytest.raises(ConfigError, match="no regions to keep"):
        plan_embed(other)
