"""`zscmr index`: build the index, add what was embedded since, delete rows, compact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zscmr_ray.claim import Update
from zscmr_ray.cli import options as opt
from zscmr_ray.cli.stages import plan, run_stages
from zscmr_ray.errors import ConfigError, DataError

_Append = Annotated[
    bool,
    typer.Option("--append", help="Add segments of the parts embedded since; older ones stay as they are."),
]
_Delete = Annotated[
    Path | None,
    typer.Option(
        "--delete", help="A file of ids, one a line: items (with their captions) or captions to delete."
    ),
]
_Compact = Annotated[
    bool, typer.Option("--compact", help="Make one segment of all, without the deleted rows.")
]


def index(
    config: opt.ConfigFile = None,
    recipe: opt.Recipe = "fgan",
    overrides: opt.Overrides = None,
    run: opt.RunDirectory = None,
    address: opt.Address = None,
    overwrite: opt.Overwrite = False,
    append: _Append = False,
    delete: _Delete = None,
    compact: _Compact = False,
    dry_run: opt.DryRun = False,
) -> None:
    """Build the search index, write `index/`.

    Example: `zscmr index --run runs/mine`

    After `zscmr embed --append`: `--append`. Rows go with `--delete ids.txt` and come back with `--overwrite` as long as
    the embeddings hold them; `--compact` makes their going final for the index.
    """
    loaded = opt.configure(config, recipe, overrides, run=run, address=address).config
    flags = {"--overwrite": overwrite, "--append": append, "--delete": delete, "--compact": compact}
    given = [flag for flag, value in flags.items() if value]
    if len(given) > 1:
        raise ConfigError("one thing at a time", got=" ".join(given), expected=f"one of {', '.join(flags)}")
    if dry_run:
        typer.echo("\n".join(plan(loaded, ("index",))))
        return
    if delete is None and not compact:
        run_stages(loaded, ("index",), overwrite=overwrite, update=Update.APPEND if append else None)
        return
    from zscmr_ray.stages.index import compact_index, delete_rows

    result = compact_index(loaded) if delete is None else delete_rows(loaded, _read_ids(delete))
    state = "nothing to do" if result.skipped else "compacted" if delete is None else "deleted"
    counts = ", ".join(f"{value} {name}" for name, value in result.counts.items())
    typer.echo(f"index: {state}; {counts}; {result.directory}")


def _read_ids(path: Path) -> list[str]:
    try:
        ids = [line.rstrip("\r") for line in path.read_text(encoding="utf-8").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the file of ids cannot be read", got=f"{path}: {error}", expected="UTF-8 text, one id a line"
        ) from error
    return [name for name in ids if name]
