"""The verbs that look at directories and change nothing: `zscmr status` and `zscmr verify`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from zscmr_ray.errors import DataError

Directory = Annotated[
    str, typer.Argument(help="A run's directory, or one stage's: a local path or s3://.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON list, one object per stage.")]
_NAMED = 20


def status(directory: Directory, as_json: AsJson = False) -> None:
    """Say how far each stage of a run is: done, running, failed or to do; rate, time left, who is at work.

    Example: `zscmr status runs/mine`
    """
    from zscmr_ray.stages.status import read_status, status_lines

    found = read_status(directory)
    if as_json:
        typer.echo(json.dumps([one.as_json() for one in found], indent=2))
        return
    for one in found:
        typer.echo("\n".join(status_lines(one)))


def verify(directory: Directory, as_json: AsJson = False) -> None:
    """Check a run against its manifests: checksums, lost rows, repeated ids, vectors, models; exit code 3 if it fails.

    Example: `zscmr verify runs/mine`
    """
    from zscmr_ray.stages.verify import report_lines, verify_run

    reports = verify_run(directory)
    if as_json:
        typer.echo(json.dumps([asdict(report) for report in reports], indent=2))
    else:
        for report in reports:
            typer.echo("\n".join(report_lines(report)))
    violations = [text for report in reports for text in report.violations]
    if violations:
        more = f"; and {len(violations) - _NAMED} more" if len(violations) > _NAMED else ""
        raise DataError(
            f"{directory} is not what its manifests say: {len(violations)} violations",
            got="; ".join(violations[:_NAMED]) + more,
            expected="every file as it was written",
            remedy="copy damaged files again, or make their stage again with --overwrite",
        )
