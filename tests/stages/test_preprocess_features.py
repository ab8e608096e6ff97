"""Wikipedia at feature level: the matrix file, one region and one token a row, and the errors of files that do not fit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.io

from tests.data.layouts import fixtures
from tests.stages.corpus import corpus_config
from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from zscmr_ray.config import Config
from zscmr_ray.data.layouts.matlab import read_matrices
from zscmr_ray.data.pairs import COLUMNS, load_pair_features
from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.manifest import require_manifest
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.preprocess import run_preprocess

pytestmark = pytest.mark.usefixtures("inline_plane")


def mat(matrices: dict[str, np.ndarray], *, compressed: bool = True) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, matrices, do_compression=compressed)
    return buffer.getvalue()


def features(num_train: int = 7, num_test: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "I_tr": (num_train, 128),
        "I_te": (num_test, 128),
        "T_tr": (num_train, 10),
        "T_te": (num_test, 10),
    }
    return {name: rng.random(shape) for name, shape in shapes.items()}


def config_of(tmp_path: Path, data: bytes) -> Config:
    fixtures.write(tmp_path / "shards", fixtures.wikipedia() | {"raw_features.mat": data})
    return corpus_config(tmp_path, data={"format": "wikipedia_features"})


@pytest.mark.parametrize("compressed", [True, False])
def test_matrices_are_what_scipy_wrote(compressed: bool) -> None:
    own = features() | {
        "small": np.array([[1, 2]], np.uint8),
        "single": np.arange(6, dtype=np.float32).reshape(2, 3),
        "text": np.array(["abc"]),
        "cell": np.array([[1, "a"]], object),
    }
    names = {"I_tr", "T_te", "small", "single"}
    found = read_matrices(mat(own, compressed=compressed), names, where="a.mat")
    assert set(found) == names
    for name in names:
        np.testing.assert_array_equal(found[name], own[name])


def test_other_files_are_refused() -> None:
    data = mat(features())
    with pytest.raises(DataError, match=r"a.mat has no J_tr; got: \['I_tr'\]"):
        read_matrices(data, {"I_tr", "J_tr"}, where="a.mat")
    with pytest.raises(DataError, match=r"a.mat has no text"):
        read_matrices(mat({"text": np.array(["abc"])}), {"text"}, where="a.mat")
    with pytest.raises(DataError, match=r"a.mat is no MATLAB 5 file"):
        read_matrices(b"\x89HDF" + bytes(200), {"I_tr"}, where="a.mat")
    for cut in (140, 2000, len(data) - 40):
        with pytest.raises(DataError, match=r"a.mat (is damaged|has no)"):
            read_matrices(data[:cut], {"I_tr", "T_te"}, where="a.mat")


def test_rows_have_one_region_and_one_token(tmp_path: Path) -> None:
    own = features()
    config = config_of(tmp_path, mat(own))
    counts = run_preprocess(config).counts
    # One text is torn; the one that is missing is shown by its name.
    assert (counts["in"], counts["out"], counts["rejected"]) == (9, 8, 1)
    store = stage_store(config, "preprocess")
    parts = [part.name for part in require_manifest(store, "preprocess").parts if "/" not in part.name]
    tables = [pq.read_table(store.path(name), columns=list(COLUMNS)) for name in parts]
    pairs = load_pair_features(tables, num_regions=1, token_channels=10)
    assert pairs.regions_NRD.shape == (8, 1, 128) and pairs.num_captions == 8
    assert pairs.captions[pairs.ids.index("t8-1")] == ["t8-1"]
    by_id = {name: row for row, name in enumerate(pairs.ids)}
    for name, side, place in (("t3-1", "tr", 3), ("t7-1", "te", 1)):
        row = by_id[name]
        np.testing.assert_array_equal(pairs.regions_NRD[row, 0], own[f"I_{side}"][place].astype(np.float16))
        np.testing.assert_array_equal(pairs.tokens(row, 0)[0], own[f"T_{side}"][place].astype(np.float16))
    assert [pairs.partition[by_id[name]] for name in ("t3-1", "t7-1")] == ["train", "test"]
    assert run_preprocess(config).skipped


def test_features_that_do_not_fit_the_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"T_tr does not fit the list of train.*7 rows or more of 10"):
        run_preprocess(config_of(tmp_path / "a", mat(features() | {"T_tr": np.zeros((6, 10))})))
    bad = features()
    bad["I_te"][0, 0] = np.nan
    with pytest.raises(DataError, match=r"I_te does not fit.*finite"):
        run_preprocess(config_of(tmp_path / "b", mat(bad)))
    with pytest.raises(ConfigError, match="no text is encoded"):
        config = config_of(tmp_path / "c", mat(features()))
        data = config.data.model_copy(update={"mask_class_words": True})
        run_preprocess(config.model_copy(update={"data": data}))
