"""The command line as a user meets it: help, dry runs, exit codes, errors in three parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zscmr_ray.cli.main import run
from zscmr_ray.cli.session import exit_code_of, find_cause, render
from zscmr_ray.errors import ConfigError, DataError, RefusedError, TrainingError

VERBS = [
    "preprocess",
    "train",
    "evaluate",
    "embed",
    "index",
    "serve",
    "query",
    "pipeline",
    "demo",
    "convert",
    "duplicates",
    "export",
    "submit",
]


@pytest.mark.parametrize("verb", [*VERBS, "config explain", "config schema"])
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*verb.split(), "--help"]) == 0
    assert "Example" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["preprocess", "train", "evaluate", "embed", "index", "pipeline"])
def test_dry_run_touches_nothing(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "run"
    assert run([verb, "--run", str(target), "--dry-run"]) == 0
    assert "to do" in capsys.readouterr().out
    assert not target.exists()


def test_a_missing_path_is_a_data_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["preprocess", "--input", str(tmp_path / "nowhere"), "--run", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert code == 3
    assert "nowhere" in said and "remedy" in said


def test_an_unknown_key_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--set", "train.lr=1"]) == 2
    assert "nearest: optim.lr" in capsys.readouterr().err


def test_a_stage_before_its_input_names_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb, needed in (("evaluate", "preprocess"), ("index", "embed")):
        assert run([verb, "--run", str(tmp_path)]) == 3
        assert f"zscmr {needed}" in capsys.readouterr().err


def _raiser(error: BaseException) -> object:
    raise error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TrainingError("x"), 1),
        (ConfigError("x"), 2),
        (DataError("x"), 3),
        (RefusedError("x"), 4),
        (KeyboardInterrupt(), 130),
        (RuntimeError("x"), 1),
        (SystemExit(2), 2),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: _raiser(error)) == code
    assert capsys.readouterr().err or isinstance(error, SystemExit)


def test_errors_keep_their_parts_through_wrapping() -> None:
    error = RuntimeError("wrapped")
    error.__cause__ = DataError("no rows", got=0, expected="at least one", remedy="add some")
    found = find_cause(error)
    assert isinstance(found, DataError)
    assert render(found) == "error: no rows\n  got:      0\n  expected: at least one\n  remedy:   add some"
    assert find_cause(RuntimeError("ours")) is None


def test_the_installed_command_runs() -> None:
    command = [str(Path(sys.executable).with_name("zscmr")), "version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip()


def test_query_wants_exactly_one_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["query"]) == 2
    assert run(["query", "a cat", "--id", "x"]) == 2
    assert "one question at a time" in capsys.readouterr().err
