"""`zscmr export`: a finished training as a folder to load from or to publish."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from zscmr_ray.cli import options as opt
from zscmr_ray.storage import Store


def export(
    to: Annotated[
        str, typer.Option("--to", help="Folder to write: a local path or s3://.", show_default=False)
    ],
    run: opt.RunDirectory = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also both towers as ONNX, compared with torch (the `onnx` extra).")
    ] = False,
    config: opt.ConfigFile = None,
    overrides: opt.Overrides = None,
    overwrite: opt.Overwrite = False,
) -> None:
    """Write weights, configuration and a model card from the run's own manifests; load it with `ZeroShotRetriever`.

    Example: `zscmr export --run runs/mine --to exported/ --onnx`
    """
    from zscmr_ray.stages.export import run_export

    loaded = opt.configure(config, "fgan", overrides, run=run)
    started_s = time.monotonic()
    result = run_export(loaded.config, Store(to), onnx=onnx, overwrite=overwrite)
    state = "already done" if result.skipped else f"done in {time.monotonic() - started_s:.1f} s"
    typer.echo(f"export: {state}; {result.counts['files']} files; {result.directory}")
