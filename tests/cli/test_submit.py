"""`zscmr submit` without a cluster: its command, the log it follows, the exit codes, an interrupt."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zscmr_ray.cli.main import run
from zscmr_ray.cli.session import Interrupted, exit_code_of, sigterm_interrupts
from zscmr_ray.cli.submit import JobCommand, follow, job_command, run_job_command

ROOT = Path(__file__).parents[2]
PROGRESS = "train: 10/40 steps, 2.0 steps/s, 15 s left, loss 0.5\n"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_dry_run_prints_the_command_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--address", "http://h:8265", "--working-dir", str(ROOT), "--dry-run"]
    assert run(["submit", "train", *arguments, "--run", "s3://b/r", "--set", "optim.lr=1e-4"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "$ RAY_AUTH_MODE=token ray job submit --address http://h:8265 --submission-id zscmr-train-"
    )
    assert said.endswith("-- python jobs/train.py --run s3://b/r --set optim.lr=1e-4\n")


def test_options_of_the_stage_that_are_named_like_submits_go_behind_two_dashes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--address", "http://h:8265", "--working-dir", str(ROOT), "--dry-run"]
    assert run(["submit", "embed", *arguments, "--", "--dry-run", "--overwrite"]) == 0
    assert capsys.readouterr().out.endswith("jobs/embed.py --dry-run --overwrite\n")


def test_an_installed_project_is_not_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "embed", "--address", "http://h:8265", "--installed", "/app/", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "--working-dir" not in said and said.endswith("-- python /app/jobs/embed.py\n")


def test_what_is_wrong_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert run(["submit", "train", "--working-dir", str(ROOT)]) == 2
    assert "--address" in capsys.readouterr().err
    assert run(["submit", "nothing", "--working-dir", str(ROOT), "--address", "http://h"]) == 2
    assert "preprocess" in capsys.readouterr().err
    assert run(["submit", "train", "--working-dir", str(tmp_path), "--address", "http://h"]) == 2
    assert "jobs/ in it" in capsys.readouterr().err


def test_the_token_is_never_in_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-of-mine")
    job = job_command("train", [], address="http://h", working_dir=ROOT, job_id="j")
    assert "secret-of-mine" not in job.text + str(job.environment)


def test_progress_is_one_line_on_a_terminal_and_lines_elsewhere() -> None:
    lines = ["start\n", PROGRESS, PROGRESS.replace("10/", "20/"), "train: done in 3 s\n", "exit code: 0\n"]
    plain, terminal = io.StringIO(), Terminal()
    assert follow(lines, stream=plain) == follow(lines, stream=terminal) == 0
    assert plain.getvalue() == "".join(lines)
    shown = terminal.getvalue()
    assert shown.count("\n") == 3 and "\r\x1b[2Ktrain: 20/40" in shown
    assert shown.endswith("\r\x1b[2Ktrain: done in 3 s\nexit code: 0\n")


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["exit code: 3\n", "Job 'x' failed\n"], 3),
        (["exit code: 0\n", "later: exit code: 7 of something\n"], 0),
        (["exit code: 1\n", "Job 'x' was stopped\n"], 130),
        (["2026-11-22 WARNING cli.py:85 -- Job 'zscmr-train-1' was stopped\n"], 130),
        (["killed\n"], None),
    ],
)
def test_the_exit_code_is_the_jobs(lines: list[str], code: int | None) -> None:
    assert follow(lines, stream=io.StringIO()) == code


def fake_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A `ray` beside a Python of its own that does what the script says."""
    ray = tmp_path / "ray"
    ray.write_text(f"#!{sys.executable}\n{script}")
    ray.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))


def test_a_job_killed_without_a_word_gives_rays_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ray(tmp_path, monkeypatch, "import sys; print('gone'); sys.exit(1)")
    stream = io.StringIO()
    assert run_job_command(JobCommand(["job"], {}, job_id="j"), stream=stream) == 1
    assert stream.getvalue() == "gone\n"


@pytest.fixture
def heard_interrupts() -> Iterator[None]:
    """SIGINT as a program of one's own has it: a test process beside others ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("heard_interrupts")
def test_an_interrupt_here_leaves_the_job_and_exits_130(
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_ray(tmp_path, monkeypatch, f"import os, time\nos.kill({os.getpid()}, {int(number)})\ntime.sleep(60)")
    started_s = time.monotonic()
    code = exit_code_of(
        lambda: run_job_command(JobCommand(["job"], {}, job_id="zscmr-j"), stream=io.StringIO())
    )
    assert code == 130 and time.monotonic() - started_s < 30
    assert "ray job stop zscmr-j" in capsys.readouterr().err


def test_sigterm_ends_a_command_with_130_and_its_clean_up(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\n"
        "from zscmr_ray.cli.session import exit_code_of\n"
        "def command():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(30)\n"
        "    finally:\n"
        "        print('given back')\n"
        "sys.exit(exit_code_of(command))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130 and done.stdout == "given back\n"
    assert "goes on where it stopped" in done.stderr


def test_the_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_interrupts():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert Interrupted("x").code == 130
