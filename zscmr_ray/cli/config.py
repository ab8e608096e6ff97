"""`zscmr config`: explain the settings, print their schema or reference."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from zscmr_ray.cli import options as opt

config_app = typer.Typer(help="Explain the configuration, or print its JSON schema.", no_args_is_help=True)


@config_app.command("explain")
def config_explain(
    key: Annotated[str | None, typer.Argument(help="A key or a section; everything when left out.")] = None,
    config: opt.ConfigFile = None,
    recipe: opt.Recipe = "fgan",
    overrides: opt.Overrides = None,
) -> None:
    """Print every setting with its value, its source, what it affects and its meaning.

    Example: `zscmr config explain train`
    """
    from rich.console import Console
    from rich.table import Table

    from zscmr_ray.config.explain import explain

    table = Table("key", "value", "source", "affects", "meaning")
    for row in explain(opt.configure(config, recipe, overrides), key):
        table.add_row(row.key, str(row.value), row.source, row.affects, row.meaning)
    # Plain output is wide enough that no meaning is cut; a terminal wraps.
    console = Console() if sys.stdout.isatty() else Console(width=240)
    console.print(table)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of ray_config.yaml, for editors.

    Example: `zscmr config schema > ray_config.schema.json`
    """
    from zscmr_ray.config.explain import json_schema

    typer.echo(json_schema())


@config_app.command("reference")
def config_reference() -> None:
    """Print the configuration reference (docs/config.md) as markdown.

    Example: `zscmr config reference > docs/config.md`
    """
    from zscmr_ray.config.explain import reference_markdown

    typer.echo(reference_markdown(), nl=False)
