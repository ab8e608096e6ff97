"""`zscmr up` and `zscmr down`: which command they print, and what they say when it cannot be run."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from zscmr_ray.cli import cluster
from zscmr_ray.cli.main import run

FILES = Path(__file__).parents[2] / "cluster"


@pytest.mark.parametrize("verb", ["up", "down", "doctor"])
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    assert "Example" in capsys.readouterr().out


@pytest.mark.parametrize("target", cluster.LAUNCHERS)
def test_launchers_use_ray(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("up", "down"):
        assert run([verb, target, "--files", str(FILES), "--dry-run"]) == 0
        assert capsys.readouterr().out == f"ray {verb} {FILES}/{target}.yaml\n"


@pytest.mark.parametrize("target", cluster.OVERLAYS)
@pytest.mark.parametrize("part", cluster.PARTS)
def test_overlays_use_kubectl(target: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", target, part, "--files", str(FILES), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"kubectl apply --kustomize {FILES}/kuberay/overlays/{target} ")
    assert f"in (shared, {part})" in said
    assert run(["down", target, part, "--files", str(FILES), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("kubectl delete ")


def test_mistakes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, reason in (
        (["azure"], "no such cluster"),
        (["prod", "query"], "no such part"),
        (["aws", "train"], "starts clusters only"),
    ):
        assert run(["up", *words, "--files", str(FILES), "--dry-run"]) == 2
        assert reason in capsys.readouterr().err
    assert run(["down", "aws", "--files", str(tmp_path)]) == 2
    assert "--files" in capsys.readouterr().err


def test_a_cluster_without_a_token_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert run(["up", "aws", "--files", str(FILES)]) == 2
    assert "ray get-auth-token --generate" in capsys.readouterr().err


def test_the_command_is_run_and_its_failure_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "kubectl"
    program.write_text('#!/bin/sh\necho "ran $1"\nexit 7\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert run(["down", "dev", "serve", "--files", str(FILES)]) == 1
    said = capfd.readouterr()
    assert "ran delete" in said.out and "exit code 7" in said.err
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert run(["down", "dev", "--files", str(FILES)]) == 1
    assert "kubectl is not installed" in capfd.readouterr().err


def test_worked_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FILES.parent)
    failed, tried = doctest.testmod(cluster)
    assert tried and not failed
