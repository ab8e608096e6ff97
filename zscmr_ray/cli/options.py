"""Options that every stage verb shares, and the configuration they make."""

from __future__ import annotations

from typing import Annotated

import typer

from zscmr_ray.claim import Update
from zscmr_ray.config.load import LoadedConfig, load_config
from zscmr_ray.errors import ConfigError

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
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="What embeds (embed.model): a run or its checkpoint/, or hf:ID or hf:FOLDER; default: this run's checkpoint.",
    ),
]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster; default: Ray on this machine.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output of another configuration.")]
Append = Annotated[
    bool,
    typer.Option(
        "--append", help="Add new input shards to a complete directory; what is there stays as it is."
    ),
]
RetryRejected = Annotated[
    bool,
    typer.Option("--retry-rejected", help="Do the shards with rejected rows again (after a repair, say)."),
]
Estimate = Annotated[
    bool, typer.Option("--estimate", help="First say what it will take, from a probe (see `zscmr estimate`).")
]
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
    model: str | None = None,
) -> LoadedConfig:
    """Build the configuration of one command; the shorthand options are the same as `--set` of their key."""
    texts = list(overrides or [])
    given = {"data.run_uri": run, "data.input_uri": input_uri, "ray.address": address, "embed.model": model}
    for key, value in given.items():
        if value is not None:
            texts.append(f"{key}={value!r}")
    return load_config(config, recipe=recipe, overrides=texts)


def update_of(*, append: bool, retry_rejected: bool, overwrite: bool) -> Update | None:
    """The update that the flags ask for; raises ConfigError when they ask for two things."""
    flags = {"--append": append, "--retry-rejected": retry_rejected, "--overwrite": overwrite}
    given = [flag for flag, is_set in flags.items() if is_set]
    if len(given) > 1:
        raise ConfigError(
            "one thing at a time",
            got=" ".join(given),
            expected=f"one of {', '.join(flags)}",
            remedy="--append first, then --retry-rejected; --overwrite does everything anew",
        )
    return Update.APPEND if append else Update.RETRY if retry_rejected else None
