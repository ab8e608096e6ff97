"""Segments built by Ray tasks: the bytes of those built in one process, and an error of a task as itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.embeddings_run import run_config, write_embeddings
from zscmr_ray.config import IndexSection
from zscmr_ray.errors import DataError
from zscmr_ray.manifest import require_manifest
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.index import run, run_index
from zscmr_ray.stages.index.segment import build_segment


@pytest.mark.long
@pytest.mark.usefixtures("ray_local")
def test_tasks_build_the_same_bytes_and_their_errors_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = []
    for name in ("tasks", "process"):
        config = run_config(tmp_path / name).model_copy(update={"index": IndexSection(shard_rows=30)})
        write_embeddings(config, num_items=24)
        if name == "process":
            monkeypatch.setattr(run, "_outcomes", lambda jobs: [(job, build_segment(job)) for job in jobs])
        run_index(config)
        parts = require_manifest(stage_store(config, "index"), "index").parts
        hashes.append([(part.name, part.sha256) for part in parts])
    assert hashes[0] == hashes[1] and len(hashes[0]) == 14
    monkeypatch.undo()
    config = run_config(tmp_path / "torn").model_copy(update={"index": IndexSection(shard_rows=30)})
    write_embeddings(config, num_items=24)
    part = next((tmp_path / "torn" / "embeddings" / "text").glob("part-*"))
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=part.name):
        run_index(config)
