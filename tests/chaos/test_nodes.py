"""The same bytes from one node and from three, from 1, 2 and 4 encoders, local and S3, and when a node dies in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.corpus import bad_samples, corpus_config, good_samples, write_tar
from tests.stages.driver_process import driving
from tests.stages.inline_executor import InlineExecutor
from tests.stages.numbers import digests
from tests.stages.small_run import write_checkpoint
from zscmr_ray.config import Config
from zscmr_ray.manifest import MANIFEST
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.plane import on_ray
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.storage import Store

pytestmark = pytest.mark.ray

NUM_SHARDS, ROWS = 10, 40
LIMIT_S = 200


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nodes")
    for number in range(NUM_SHARDS):
        rows = good_samples(number, ROWS) + (bad_samples() if number % 4 == 0 else [])
        write_tar(root / f"shards/{number:02}.tar", rows)
    return root


@pytest.fixture(scope="module")
def reference(corpus: Path) -> Config:
    """A run without Ray: pairs, a checkpoint, embeddings from raw shards."""
    config = corpus_config(corpus, "undisturbed", embed={"source": "shards"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_ray, "RayExecutor", InlineExecutor)
        run_preprocess(config)
        write_checkpoint(config)
        run_embed(config)
    return config


def parts(config: Config, stage: str) -> dict[str, str]:
    """sha256 of every part; the manifest is left out, because it says where its input was."""
    found = digests(stage_store(config, stage))
    return {key: digest for key, digest in found.items() if not key.endswith(MANIFEST)}


def run_config(corpus: Path, reference: Config, run: str, num_encoders: int | None) -> Config:
    plane = {"num_encoders": num_encoders, "source": "shards", "model": reference.data.run_uri}
    pairs = {"num_encoders": num_encoders}
    return corpus_config(corpus, data={"run_uri": run}, preprocess=pairs, embed=plane)


def run_on(stage: str, config: Config, *, log: Path, num_nodes: int, lose_node: bool = False) -> str:
    with driving(stage, config, log=log, num_nodes=num_nodes, lose_node=lose_node) as driver:
        assert driver.wait(LIMIT_S) == 0, log.read_text()[-4000:]
    return log.read_text()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", ["preprocess", pytest.param("embed", marks=pytest.mark.long)])
def test_a_node_that_dies_changes_no_byte(
    corpus: Path, reference: Config, tmp_path: Path, stage: str
) -> None:
    config = run_config(corpus, reference, str(tmp_path / "run"), None)
    said = run_on(stage, config, log=tmp_path / "log", num_nodes=3, lose_node=True)
    assert "a node is gone" in said
    assert parts(config, stage) == parts(reference, stage)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num_nodes", [1, 3])
@pytest.mark.parametrize("num_encoders", [1, 2, 4])
@pytest.mark.parametrize("place", ["local", "s3"])
def test_width_nodes_and_place_change_no_byte(
    corpus: Path,
    reference: Config,
    tmp_path: Path,
    s3_bucket: str,
    place: str,
    num_encoders: int,
    num_nodes: int,
) -> None:
    run = (
        str(tmp_path / "run")
        if place == "local"
        else Store(s3_bucket).child(f"{num_encoders}-{num_nodes}").uri
    )
    config = run_config(corpus, reference, run, num_encoders)
    for stage in ("preprocess", "embed"):
        run_on(stage, config, log=tmp_path / stage, num_nodes=num_nodes)
        assert parts(config, stage) == parts(reference, stage)
