"""--append and --retry-rejected of the real stages, preprocess and embed, over tiny backbones; then verify and status.

The plane runs in this process; that Ray changes no byte is tested elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stages.corpus import bad_samples, corpus_config, good_samples, write_tar
from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from tests.stages.numbers import digests
from tests.stages.small_run import write_checkpoint
from zscmr_ray.claim import Update
from zscmr_ray.cli.main import run
from zscmr_ray.config import Config
from zscmr_ray.errors import RefusedError
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.index import run_index
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.stages.verify import verify_run

pytestmark = pytest.mark.usefixtures("inline_plane")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run that was preprocessed and embedded: a clean shard, and one with five bad rows."""
    write_tar(tmp_path / "shards/a.tar", good_samples(1, 20))
    write_tar(tmp_path / "shards/b.tar", good_samples(2, 5) + bad_samples())
    config = corpus_config(tmp_path)
    run_preprocess(config)
    write_checkpoint(config)
    run_embed(config)
    return config


def same_as_fresh(tmp_path: Path, config: Config, stage: str) -> bool:
    """Whether a stage's directory is what a run from nothing makes of the same input."""
    fresh = corpus_config(tmp_path, f"fresh-{stage}")
    run_preprocess(fresh)
    if stage == "embed":
        write_checkpoint(fresh)
        run_embed(fresh)
    return digests(stage_store(config, stage)) == digests(stage_store(fresh, stage))


def verified(config: Config) -> None:
    reports = verify_run(config.data.run_uri)
    assert [text for report in reports for text in report.violations] == []


def test_new_shards_are_added_to_pairs_and_then_to_embeddings(tmp_path: Path, config: Config) -> None:
    stores = [stage_store(config, stage) for stage in ("preprocess", "embed")]
    before = [digests(store) for store in stores]
    write_tar(tmp_path / "shards/c.tar", good_samples(3, 7))
    with pytest.raises(RefusedError, match="--append if shards were added"):
        run_preprocess(config)
    added = run_preprocess(config, update=Update.APPEND)
    assert (added.counts["in"], added.counts["shards"]) == (37, 3)
    with pytest.raises(RefusedError, match="--append"):
        run_embed(config)
    assert run_embed(config, update=Update.APPEND).counts["image"] == 32
    for store, old in zip(stores, before, strict=True):
        new = digests(store)
        assert all(new[name] == digest for name, digest in old.items() if name != "manifest.json")
    assert same_as_fresh(tmp_path, config, "preprocess") and same_as_fresh(tmp_path, config, "embed")
    run_index(config)
    verified(config)


def test_repaired_shards_are_done_again_in_both(tmp_path: Path, config: Config) -> None:
    write_tar(tmp_path / "shards/b.tar", good_samples(2, 10))
    counts = run_preprocess(config, update=Update.RETRY).counts
    assert (counts["in"], counts["rejected"]) == (30, 0)
    with pytest.raises(RefusedError, match=r"1 shards were changed: part-.*--retry-rejected"):
        run_embed(config, update=Update.APPEND)
    assert run_embed(config, update=Update.RETRY).counts["image"] == 30
    assert same_as_fresh(tmp_path, config, "preprocess") and same_as_fresh(tmp_path, config, "embed")
    verified(config)


def test_a_shard_that_had_no_bad_row_is_not_touched_by_a_retry(tmp_path: Path, config: Config) -> None:
    write_tar(tmp_path / "shards/a.tar", good_samples(9, 20))
    for update, what in (
        (Update.APPEND, "changed: a.tar"),
        (Update.RETRY, "without having rejected rows: a.tar"),
    ):
        with pytest.raises(RefusedError, match=what):
            run_preprocess(config, update=update)
    (tmp_path / "shards/a.tar").unlink()
    with pytest.raises(RefusedError, match=r"removed: a\.tar"):
        run_preprocess(config, update=Update.APPEND)


def test_the_verbs_of_a_run(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    uri = config.data.run_uri
    assert run(["status", uri]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["preprocess", "done"], ["train", "done"], ["evaluate", "to"], ["embed", "done"], ["index", "to"],
    ]  # fmt: skip
    assert "2 shards, 30 rows, 5 rejected" in lines[0]
    assert run(["verify", uri]) == 0
    said = capsys.readouterr().out
    assert "preprocess ok   3 parts, 30 rows" in said and "embed      ok   4 parts" in said
    assert run(["verify", f"{uri}/embeddings", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["stage"], report["violations"]) == ("embed", [])
    part = next((Path(uri) / "embeddings" / "text").glob("part-*"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    assert run(["verify", uri]) == 3
    said = capsys.readouterr()
    assert f"violation: text/{part.name}: a part is not the one" in said.out
    assert part.name in said.err and "remedy" in said.err
    assert run(["status", f"{uri}/nowhere"]) == run(["verify", f"{uri}/nowhere"]) == 3


def test_updates_on_the_command_line(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["preprocess", "--run", config.data.run_uri, "--input", config.data.input_uri]
    assert run([*command, "--append", "--retry-rejected"]) == 2
    assert run([*command, "--append", "--overwrite"]) == 2
    assert "one thing at a time" in capsys.readouterr().err
    assert run(["train", "--append"]) == 2
