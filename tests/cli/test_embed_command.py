"""`zscmr embed` as a user types it: shards and a model are enough; what is missing is said with its exit code."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.stages.corpus import good_samples, write_tar
from tests.stages.inline_executor import inline_plane  # noqa: F401  a fixture
from tests.tiny_duals import write_clip
from zscmr_ray.cli import stages
from zscmr_ray.cli.main import run


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch, inline_plane: None) -> None:  # noqa: F811
    """Stages without a Ray: their jobs run in this process."""
    monkeypatch.setattr(stages, "ray_session", lambda _section: contextlib.nullcontext())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("command")
    write_tar(root / "shards/a.tar", good_samples(0, 5))
    write_clip(root / "clip")
    return root


def test_shards_and_a_model_are_enough(
    root: Path, tmp_path: Path, no_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["embed", "--input", f"{root}/shards", "--model", f"hf:{root}/clip", "--run", f"{tmp_path}/new"]
    assert run(command) == 0
    said = capsys.readouterr()
    assert "embed: done" in said.out and "5 image" in said.out and "9 text" in said.out
    assert "no pairs are needed" in said.err
    assert run(command) == 0
    assert "already done" in capsys.readouterr().out
    assert run(["index", "--run", f"{tmp_path}/new"]) == 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--input", "{root}/shards"], 3, "train is not complete"),
        (["--model", "hf:{root}/clip"], 3, "there is nothing to embed"),
        (["--input", "{root}/nowhere", "--model", "hf:{root}/clip"], 3, "no such path"),
        (["--input", "{root}/shards", "--model", "{root}/nowhere"], 2, "no such model"),
        (["--input", "{root}/shards", "--model", "hf:{root}/shards"], 2, "cannot load the dual encoder"),
    ],
)
def test_what_is_missing_is_said(
    root: Path,
    tmp_path: Path,
    no_ray: None,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    said: str,
) -> None:
    command = ["embed", "--run", f"{tmp_path}/new", *(option.format(root=root) for option in options)]
    assert run(command) == code
    error = capsys.readouterr().err
    assert said in error and "remedy" in error
    assert not (tmp_path / "new/embeddings").exists()
