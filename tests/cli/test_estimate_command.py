"""`zscmr estimate` and `--estimate` as a user types them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from tests.stages.corpus import good_samples, write_tar
from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from tests.tiny_duals import write_clip
from zscmr_ray.cli import stages
from zscmr_ray.cli.main import run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("estimate-command")
    write_tar(root / "shards/a.tar", good_samples(0, 40))
    write_clip(root / "clip")
    return root


def command(root: Path, tmp_path: Path, *words: str) -> list[str]:
    return [*words, "--input", f"{root}/shards", "--run", f"{tmp_path}/run"]


def test_a_table_by_width_with_cost(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", f"hf:{root}/clip", "--nodes", "2", "--node-cpus", "16", "--price-per-hour", "3600"]
    assert run([*command(root, tmp_path, "estimate", "embed"), *options]) == 0
    said = capsys.readouterr().out
    assert "about 40 rows in 1 shards" in said and "probed 40 rows" in said and "limited by" in said
    rows = [line.split() for line in said.splitlines() if line.split()[0].isdigit()]
    assert [(row[0], row[1]) for row in rows] == [("2", "32"), ("4", "64"), ("8", "128"), ("16", "256")]
    assert not list((tmp_path / "run").rglob("*.*"))


def test_json_for_preprocess(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = [f"--set=preprocess.{side}_backbone=tiny" for side in ("image", "text")]
    assert run([*command(root, tmp_path, "estimate", "preprocess"), *tiny, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stage"] == "preprocess" and found["rows"] == 40 and not found["rows_are_counted"]
    assert [one["nodes"] for one in found["estimates"]] == [1, 2, 4, 8]
    first = found["estimates"][0]
    assert first["cost"] is None and first["time_s"] > first["start_s"] > 0 and first["output_bytes"] > 0


def test_other_stages_have_no_estimate(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(root, tmp_path, "estimate", "train")) == 2
    assert "embed or preprocess" in capsys.readouterr().err


def test_an_estimate_before_a_run(
    root: Path,
    tmp_path: Path,
    inline_plane: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stages, "ray_session", lambda _section: contextlib.nullcontext())
    words = command(root, tmp_path, "embed", "--estimate", "--model", f"hf:{root}/clip")
    assert run(words) == 0
    said = capsys.readouterr()
    assert "limited by" in said.err and "embed: done" in said.out
