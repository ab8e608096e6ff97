"""`zscmr up` and `zscmr down`: the `ray` or `kubectl` command that applies a file of cluster/, printed and then run.

Not a scheduler and not a second configuration: what is applied is in those files.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from zscmr_ray.cli import options as opt
from zscmr_ray.errors import ConfigError, MissingPackageError, ZscmrError

LAUNCHERS = ("aws", "gcp", "onprem")
OVERLAYS = ("dev", "prod")
PARTS = ("cluster", "train", "embed", "serve")
_LABEL = "app.kubernetes.io/component"

Target = Annotated[
    str,
    typer.Argument(
        help="aws, gcp, onprem (`ray up`), or dev, prod (overlays of cluster/kuberay).", show_default=False
    ),
]
Part = Annotated[
    str,
    typer.Argument(help="On Kubernetes: cluster (a RayCluster), train, embed (jobs) or serve (a service)."),
]
Files = Annotated[Path, typer.Option(help="The folder with these files.")]


def up(
    target: Target, part: Part = "cluster", files: Files = Path("cluster"), dry_run: opt.DryRun = False
) -> None:
    """Start a cluster, or on Kubernetes one part of it: print the `ray` or `kubectl` command and run it.

    Example: `zscmr up aws`, or on Kubernetes `zscmr up prod train`

    Doing it again changes what differs and leaves the rest.
    """
    if target in LAUNCHERS and not dry_run:
        _check_token()
    run_command(command_of("up", target, part, files=files), dry_run=dry_run)


def down(
    target: Target, part: Part = "cluster", files: Files = Path("cluster"), dry_run: opt.DryRun = False
) -> None:
    """Stop what `zscmr up` started; what is in the buckets stays, and the same command goes on with it later.

    Example: `zscmr down aws`, or on Kubernetes `zscmr down prod train`
    """
    run_command(command_of("down", target, part, files=files), dry_run=dry_run)


def command_of(verb: str, target: str, part: str, *, files: Path) -> list[str]:
    """The command of `up` or `down`; raises ConfigError for an unknown target or part, or where the files are not.

    >>> command_of("down", "aws", "cluster", files=Path("cluster"))
    ['ray', 'down', 'cluster/aws.yaml']
    >>> command_of("up", "prod", "embed", files=Path("cluster"))[:4]
    ['kubectl', 'apply', '--kustomize', 'cluster/kuberay/overlays/prod']
    """
    if target in LAUNCHERS:
        if part != "cluster":
            raise ConfigError(
                "`ray up` starts clusters only",
                got=part,
                expected="cluster",
                remedy=f"zscmr up {target}, then submit the job to it (docs/cluster.md)",
            )
        return ["ray", verb, str(_existing(files / f"{target}.yaml"))]
    if target not in OVERLAYS:
        raise ConfigError("no such cluster", got=target, expected=", ".join((*LAUNCHERS, *OVERLAYS)))
    if part not in PARTS:
        raise ConfigError("no such part", got=part, expected=", ".join(PARTS))
    folder = str(_existing(files / "kuberay" / "overlays" / target))
    # What all parts share stays when one is taken down.
    parts = f"{_LABEL} in (shared, {part})" if verb == "up" else f"{_LABEL}={part}"
    return ["kubectl", "apply" if verb == "up" else "delete", "--kustomize", folder, "--selector", parts]


def run_command(command: list[str], *, dry_run: bool) -> None:
    """Print a command and run it in this terminal. Raises MissingPackageError without its program, else ZscmrError."""
    typer.echo(shlex.join(command))
    if dry_run:
        return
    if shutil.which(command[0]) is None:
        raise MissingPackageError(
            f"{command[0]} is not installed", remedy="install it, or run the command above where it is"
        )
    code = subprocess.run(command, check=False).returncode
    if code:
        raise ZscmrError(f"{command[0]} failed", got=f"exit code {code}", remedy="see what it said above")


def _existing(path: Path) -> Path:
    if path.exists():
        return path
    raise ConfigError(
        "the cluster's files are not here",
        got=str(path),
        remedy="run it in the project's folder, or say --files <its cluster folder>",
    )


def _check_token() -> None:
    """The launcher copies this machine's token to the nodes; without one it would stop half-way."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file():
        raise ConfigError(
            "there is no token for the cluster", got=f"no {path}", remedy="ray get-auth-token --generate"
        )
