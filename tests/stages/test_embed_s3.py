"""Embedding raw shards from and to a real S3 server, with a checkpoint that lies there too: the same parts as locally."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.corpus import corpus_config, good_samples, write_tar
from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from tests.stages.small_run import write_checkpoint
from zscmr_ray.manifest import require_manifest
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.storage import Store

pytestmark = pytest.mark.usefixtures("inline_plane")


def test_shards_model_and_vectors_on_s3_give_the_local_parts(s3_bucket: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "shards/a.tar", good_samples(0, 20))
    write_tar(tmp_path / "shards/sub/b.tar", good_samples(1, 3))
    write_checkpoint(corpus_config(tmp_path, "trained"))
    for folder in ("shards", "trained"):
        for info in Store(tmp_path / folder).list():
            Store(f"{s3_bucket}/{folder}").put_file(info.key, tmp_path / folder / info.key)
    local = corpus_config(tmp_path, "local", embed={"model": str(tmp_path / "trained")})
    remote = corpus_config(
        tmp_path,
        data={"input_uri": f"{s3_bucket}/shards", "run_uri": f"{s3_bucket}/run"},
        embed={"model": f"{s3_bucket}/trained"},
    )
    run_embed(local)
    result = run_embed(remote)
    assert result.info["model"] == f"{s3_bucket}/trained/checkpoint"
    parts = [require_manifest(stage_store(config, "embed"), "embed").parts for config in (local, remote)]
    assert parts[0] and parts[0] == parts[1]
    assert run_embed(remote).skipped
