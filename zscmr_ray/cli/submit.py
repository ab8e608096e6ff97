"""`zscmr submit`: a stage as a Ray job. It prints the `ray job submit` command, runs it and follows the log.

What it adds to that command is the token mode, the progress in one line on a terminal, and the stage's own exit code: Ray
knows succeeded and failed only, so `jobs/*.py` print theirs last. Not a scheduler, and nothing here runs a stage.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TextIO

import typer

from zscmr_ray.cli.session import INTERRUPTED, Interrupted
from zscmr_ray.errors import ConfigError

# Where `ray job submit` looks for the cluster, in its order.
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
EXIT_CODE = re.compile(r"^exit code: (\d+)\s*$")
# Ray's own last word on a job that `ray job stop` ended.
STOPPED = re.compile(r"\bJob '[^']+' was stopped\b")
# What progress.py prints while a stage is under way.
PROGRESS = re.compile(r"^[\w -]+: \d+(/\d+)? \w+, [\d.]+ \w+/s, (\d+ s left|remaining time unknown)")
_CLEAR_LINE = "\r\x1b[2K"


def submit(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(help="A file of jobs/: preprocess, train, evaluate, embed ...")],
    address: Annotated[
        str | None, typer.Option("--address", help="The cluster's jobs API, http://HOST:8265.")
    ] = None,
    working_dir: Annotated[
        Path, typer.Option(help="Folder that is shipped: the project, with jobs/ in it.")
    ] = Path(),
    installed: Annotated[
        str | None,
        typer.Option(help="Ship nothing: the project's folder on the cluster's machines, /app in our image."),
    ] = None,
    python: Annotated[str, typer.Option(help="The interpreter on the cluster.")] = "python",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command; run nothing.")] = False,
) -> None:
    """Run a stage on a cluster with `ray job submit`, follow its log, end with the stage's own exit code.

    Example: `zscmr submit train --address http://127.0.0.1:8265 --run s3://bucket/run --set optim.lr=1e-4`

    All other options go to the stage (after `--` also those named like submit's own). An interrupt here ends the
    following only; `ray job stop` ends the job, and submitting it again goes on where it stopped.
    """
    job = job_command(
        stage,
        context.args,
        address=address,
        working_dir=working_dir,
        installed=installed,
        python=python,
        job_id=new_job_id(stage),
    )
    typer.echo(f"$ {job.text}")
    if not dry_run:
        raise SystemExit(run_job_command(job))


class JobCommand:
    """One `ray job submit` command line with the environment it needs."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], *, job_id: str) -> None:
        self.words, self.environment, self.job_id = tuple(words), dict(environment), job_id

    @property
    def text(self) -> str:
        """What to type in a shell for the same."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, "ray", shlex.join(self.words)])


def new_job_id(stage: str) -> str:
    """A submission id that names its stage."""
    return f"zscmr-{stage}-{uuid.uuid4().hex[:8]}"


def job_command(
    stage: str,
    arguments: Sequence[str],
    *,
    address: str | None,
    working_dir: Path = Path(),
    installed: str | None = None,
    python: str = "python",
    job_id: str,
) -> JobCommand:
    """The command for a stage. Raises ConfigError for an unknown stage and without a cluster's address.

    >>> command = job_command("train", ["--run", "a b"], address="http://h:8265", installed="/app", job_id="j")
    >>> command.text  # doctest: +NORMALIZE_WHITESPACE
    "RAY_AUTH_MODE=token ray job submit --address http://h:8265 --submission-id j --
     python /app/jobs/train.py --run 'a b'"
    """
    jobs = sorted(path.stem for path in (working_dir / "jobs").glob("*.py"))
    if installed is None and stage not in jobs:
        raise ConfigError(
            f"no jobs/{stage}.py in the working directory",
            got=working_dir.absolute(),
            expected=f"one of {', '.join(jobs)}" if jobs else "the project's folder, with jobs/ in it",
            remedy="--working-dir PROJECT, or --installed FOLDER where the cluster's machines have it",
        )
    if address is None and not any(os.environ.get(name) for name in ADDRESS_VARIABLES):
        raise ConfigError(
            "which cluster",
            got="no --address, and neither " + " nor ".join(ADDRESS_VARIABLES),
            expected="the address of its jobs API",
            remedy="--address http://HOST:8265 (of a cluster on this machine: http://127.0.0.1:8265)",
        )
    words = ["job", "submit", *(["--address", address] if address else []), "--submission-id", job_id]
    words += ["--working-dir", str(working_dir)] if installed is None else []
    script = f"jobs/{stage}.py" if installed is None else f"{installed.rstrip('/')}/jobs/{stage}.py"
    words += ["--", python, script, *arguments]
    # The token itself stays where Ray keeps it: a command line is read by everybody on the machine.
    return JobCommand(words, {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token")}, job_id=job_id)


def run_job_command(job: JobCommand, *, stream: TextIO | None = None) -> int:
    """Run the command, pass its output on, and return the job's exit code; 130 for a job that was stopped."""
    ray = Path(sys.executable).with_name("ray")
    process = subprocess.Popen(
        [str(ray) if ray.exists() else "ray", *job.words],
        # Unbuffered: lines are followed, not collected.
        env={**os.environ, **job.environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    try:
        with process.stdout:
            code = follow(process.stdout, stream=stream or sys.stdout)
        submitted_code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        raise Interrupted(
            f"interrupted here; the job goes on: `ray job logs --follow {job.job_id}` follows it, "
            f"`ray job stop {job.job_id}` ends it, and submitting it again then goes on where it stopped"
        ) from None
    return submitted_code if code is None else code


def follow(lines: Iterable[str], *, stream: TextIO) -> int | None:
    """Print lines as they come, progress in place on a terminal; returns the exit code that the job said last.

    130 for a job that was stopped, None for one that was killed before it could say anything.
    """
    code: int | None = None
    in_place = False
    for line in lines:
        found = EXIT_CODE.match(line)
        code = int(found.group(1)) if found else INTERRUPTED if STOPPED.search(line) else code
        is_progress = stream.isatty() and PROGRESS.match(line) is not None
        stream.write(_CLEAR_LINE if in_place else "")
        stream.write(line.rstrip("\n") if is_progress else line)
        stream.flush()
        in_place = is_progress
    if in_place:
        stream.write("\n")
    return code
