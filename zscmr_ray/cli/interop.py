"""The verbs that take directories instead of a run: `zscmr convert` and `zscmr duplicates`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import typer

from zscmr_ray.cli import options as opt
from zscmr_ray.errors import ConfigError
from zscmr_ray.stages import StageResult
from zscmr_ray.storage import Store

LAYOUTS = ("clip-retrieval",)


def convert(
    source: Annotated[str, typer.Argument(help="Directory to read: a local path or s3://.")],
    target: Annotated[str, typer.Argument(help="Directory to write: a local path or s3://.")],
    to_layout: Annotated[str | None, typer.Option("--to", help="Export embeddings: clip-retrieval.")] = None,
    from_layout: Annotated[
        str | None, typer.Option("--from", help="Import embeddings: clip-retrieval.")
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="Which model made the imported vectors, e.g. ViT-B/32.")
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(help="Metadata column with the ids (else item_id, id, image_path, or the row number)."),
    ] = None,
    overwrite: opt.Overwrite = False,
) -> None:
    """Turn embeddings into the clip-retrieval layout (img_emb, text_emb, metadata), or that layout into embeddings.

    Example: `zscmr convert --to clip-retrieval runs/mine/embeddings exported/`, and back:
    `zscmr convert --from clip-retrieval laion/ runs/laion/embeddings --model-name ViT-B/32`
    """
    from zscmr_ray.stages.convert import export_clip_retrieval, import_clip_retrieval

    given = [layout for layout in (to_layout, from_layout) if layout is not None]
    if len(given) != 1 or given[0] not in LAYOUTS:
        raise ConfigError(
            "which way to convert",
            got=f"--to {to_layout} --from {from_layout}",
            expected=f"one of --to and --from, with {' or '.join(LAYOUTS)}",
        )
    if to_layout is not None and (model_name or id_column):
        raise ConfigError("--model-name and --id-column describe what is imported", got=f"--to {to_layout}")
    stores = (Store(source), Store(target))
    _run(
        (lambda: export_clip_retrieval(*stores, overwrite=overwrite))
        if to_layout is not None
        else (
            lambda: import_clip_retrieval(
                *stores, model_name=model_name, id_column=id_column, overwrite=overwrite
            )
        )
    )


def duplicates(
    source: Annotated[str, typer.Argument(help="An embeddings directory: a local path or s3://.")],
    out: Annotated[str, typer.Option(help="Where the table goes: a local path or s3://.")],
    threshold: Annotated[float, typer.Option(help="Cosine from which two rows are near duplicates.")] = 0.97,
    near: Annotated[bool, typer.Option(help="Compare vectors too; every row with every other.")] = True,
    max_rows: Annotated[
        int, typer.Option(help="Refuse to compare more rows than this (the time is quadratic).")
    ] = 200_000,
    overwrite: opt.Overwrite = False,
) -> None:
    """Mark exact and near duplicates in a table (id, group, kind, score, keep); nothing is deleted.

    Example: `zscmr duplicates runs/mine/embeddings --threshold 0.97 --out runs/mine/duplicates`
    """
    from zscmr_ray.stages.duplicates import mark_duplicates

    _run(
        lambda: mark_duplicates(
            Store(source), Store(out), threshold=threshold, near=near, max_rows=max_rows, overwrite=overwrite
        )
    )


def _run(stage: Callable[[], StageResult]) -> None:
    started_s = time.monotonic()
    result = stage()
    counts = ", ".join(f"{value} {name}" for name, value in result.counts.items())
    state = "already done" if result.skipped else f"done in {time.monotonic() - started_s:.1f} s"
    typer.echo(f"{result.stage}: {state}; {counts}; {result.directory}")
    left_out = result.info.get("left_out")
    if left_out:
        typer.echo(f"{result.stage}: not carried over: {', '.join(left_out)}")
