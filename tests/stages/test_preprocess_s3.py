"""Preprocess from and to a real S3 server: the same bytes as on a local disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.corpus import bad_samples, corpus_config, good_samples, write_tar
from tests.stages.numbers import RAY_WARNINGS, digests
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.storage import Store

pytestmark = [pytest.mark.ray, *RAY_WARNINGS]


# The server's address and keys are in the environment before Ray's workers inherit it.
@pytest.fixture(scope="module")
def bucket(s3_bucket: str, ray_local: None) -> str:
    return s3_bucket


def test_s3_in_and_out_gives_the_bytes_of_a_local_run(bucket: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "shards/a.tar", good_samples(1, 20))
    write_tar(tmp_path / "shards/b.tar", good_samples(2, 5) + bad_samples())
    remote = Store(f"{bucket}/corpus")
    for info in Store(tmp_path / "shards").list():
        remote.put_file(f"shards/{info.key}", tmp_path / "shards" / info.key)
    local = corpus_config(tmp_path)
    there = corpus_config(
        tmp_path, data={"input_uri": f"{remote.uri}/shards/*.tar", "run_uri": f"{remote.uri}/run"}
    )
    results = [run_preprocess(config) for config in (local, there)]
    assert results[0].counts == results[1].counts
    assert results[1].counts["out"] == 25
    stores = [stage_store(config, "preprocess") for config in (local, there)]
    parts = [{key: value for key, value in digests(store).items() if "part-" in key} for store in stores]
    assert parts[0] == parts[1] and len(parts[0]) == 3
    assert run_preprocess(there).skipped
    assert {info.key for info in stores[1].list()} == parts[1].keys() | {
        "manifest.json",
        "_stage.json",
        "_lease/00000001.json",
    }
