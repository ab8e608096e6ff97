"""Options that every stage verb shares, and the configuration they make."""

from __future__ import annotations

from typing import Annotated

import typer

from zscmr_ray.config.load import LoadedConfig, load_config

ConfigFile = Annotated[
    str | None, typer.Option("--config", help="YAML file; default ./ray_config.yaml when it is there.")
]
Recipe = Annotated[
    str, typer.Option("--recipe", help="Model, loss and optimiser: fgan, fgan_paper, fgan_mean, ...")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one setting, e.g. --set optim.lr=1e-4 (repeatable)."),
]
RunDirectory = Annotated[
    str | None, typer.Option("--run", help="Directory of this run's stages (data.run_uri).")
]
Input = Annotated[
    str | None, typer.Option("--input", help="Shards to read (data.input_uri): folder, file or glob.")
]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster; default: Ray on this machine.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output of another configuration.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done and in which directories; do nothing.")
]


def configure(
    config: str | None,
    recipe: str,
    overrides: list[str] | None,
    *,
    run: str | None = None,
    input_uri: str | None = None,
    address: str | None = None,
) -> LoadedConfig:
    """Build the configuration of one command; the shorthand options are the same as `--set` of their key."""
    texts = list(overrides or [])
    for key, value in (("data.run_uri", run), ("data.input_uri", input_uri), ("ray.address", address)):
        if value is not None:
            texts.append(f"{key}={value!r}")
    return load_config(config, recipe=recipe, overrides=texts)
