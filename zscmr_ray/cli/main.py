"""`zscmr <verb>`: one verb per stage, each with the same options, examples in its help, and a --dry-run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from zscmr_ray import __version__
from zscmr_ray.cli import ablation, cluster, directories, interop
from zscmr_ray.cli import options as opt
from zscmr_ray.cli.config import config_app
from zscmr_ray.cli.doctor import doctor
from zscmr_ray.cli.estimate import estimate, print_estimate
from zscmr_ray.cli.export import export
from zscmr_ray.cli.index import index
from zscmr_ray.cli.service import serve
from zscmr_ray.cli.session import exit_code_of, prepare_environment
from zscmr_ray.cli.stages import PIPELINE, plan, run_stages
from zscmr_ray.cli.submit import submit

app = typer.Typer(
    name="zscmr",
    help="Zero-shot image-text retrieval on Ray: preprocess, train, evaluate, embed, index, serve, query.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(config_app, name="config")


def _stage_command(verb: str, summary: str, example: str) -> None:
    def command(
        config: opt.ConfigFile = None,
        recipe: opt.Recipe = "fgan",
        overrides: opt.Overrides = None,
        run: opt.RunDirectory = None,
        input_uri: opt.Input = None,
        address: opt.Address = None,
        overwrite: opt.Overwrite = False,
        dry_run: opt.DryRun = False,
    ) -> None:
        loaded = opt.configure(config, recipe, overrides, run=run, input_uri=input_uri, address=address)
        stages = PIPELINE if verb == "pipeline" else (verb,)
        if dry_run:
            typer.echo("\n".join(plan(loaded.config, stages)))
            return
        run_stages(loaded.config, stages, overwrite=overwrite)

    command.__doc__ = f"{summary}\n\nExample: `{example}`"
    app.command(verb)(command)


@app.command()
def preprocess(
    config: opt.ConfigFile = None,
    recipe: opt.Recipe = "fgan",
    overrides: opt.Overrides = None,
    run: opt.RunDirectory = None,
    input_uri: opt.Input = None,
    address: opt.Address = None,
    overwrite: opt.Overwrite = False,
    append: opt.Append = False,
    retry_rejected: opt.RetryRejected = False,
    with_estimate: opt.Estimate = False,
    dry_run: opt.DryRun = False,
) -> None:
    """Read image-text shards, run the frozen backbones once, write `pairs/`.

    Example: `zscmr preprocess --input shards/ --run runs/mine --set data.columns.caption=title`

    When shards were added to a complete run: `--append`; when shards with rejected rows were repaired: `--retry-rejected`.
    """
    loaded = opt.configure(config, recipe, overrides, run=run, input_uri=input_uri, address=address)
    update = opt.update_of(append=append, retry_rejected=retry_rejected, overwrite=overwrite)
    if dry_run:
        typer.echo("\n".join(plan(loaded.config, ("preprocess",))))
        return
    probe = print_estimate(loaded, "preprocess") if with_estimate else None
    run_stages(loaded.config, ("preprocess",), overwrite=overwrite, update=update, probe=probe)


_stage_command(
    "train",
    "Train the alignment network on the seen classes, write `checkpoint/`.",
    "zscmr train --run runs/mine --recipe fgan --set split.kind=random --set split.seed=1",
)
_stage_command(
    "evaluate", "Measure retrieval on unseen classes, write `report/`.", "zscmr evaluate --run runs/mine"
)


@app.command()
def embed(
    config: opt.ConfigFile = None,
    recipe: opt.Recipe = "fgan",
    overrides: opt.Overrides = None,
    run: opt.RunDirectory = None,
    input_uri: opt.Input = None,
    model: opt.Model = None,
    address: opt.Address = None,
    overwrite: opt.Overwrite = False,
    append: opt.Append = False,
    retry_rejected: opt.RetryRejected = False,
    with_estimate: opt.Estimate = False,
    dry_run: opt.DryRun = False,
) -> None:
    """Embed the run's pairs, or raw shards with any finished model, write `embeddings/`.

    Example: `zscmr embed --run runs/mine`

    Shards and a model are enough: `zscmr embed --input shards/ --model runs/mine --run runs/new`, and with a pretrained
    dual encoder `--model hf:openai/clip-vit-base-patch32`. Images or texts alone: `--set data.modality=image` or `text`.
    """
    loaded = opt.configure(
        config, recipe, overrides, run=run, input_uri=input_uri, address=address, model=model
    )
    update = opt.update_of(append=append, retry_rejected=retry_rejected, overwrite=overwrite)
    if dry_run:
        typer.echo("\n".join(plan(loaded.config, ("embed",))))
        return
    probe = print_estimate(loaded, "embed") if with_estimate else None
    run_stages(loaded.config, ("embed",), overwrite=overwrite, update=update, probe=probe)


app.command()(index)
_stage_command(
    "pipeline",
    "Run preprocess, train, evaluate, embed and index in turn; finished stages return at once.",
    "zscmr pipeline --input shards/ --run runs/mine",
)


app.command()(serve)


@app.command()
def query(
    text: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to look for instead.")] = None,
    item_id: Annotated[
        str | None, typer.Option("--id", help="An item of the index to look for instead.")
    ] = None,
    target: Annotated[str, typer.Option(help="What to find: image or text.")] = "image",
    k: Annotated[int, typer.Option("-k", help="Number of results.")] = 10,
    label: Annotated[list[str] | None, typer.Option(help="Only results of this class (repeatable).")] = None,
    label_weight: Annotated[
        float | None, typer.Option("--lambda", help="Weight of label distributions.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a gallery page here.")] = None,
    url: Annotated[str, typer.Option(help="The service.")] = "http://127.0.0.1:8000",
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable with the API key.")
    ] = "ZSCMR_API_KEY",
) -> None:
    """Ask a running service and print a table of results.

    Example: `zscmr query "a smiling cat" -k 5 --html cats.html`
    """
    from zscmr_ray.cli.query import run_query

    run_query(
        text=text, image=image, item_id=item_id, target=target, k=k, labels=label or [],
        label_weight=label_weight, html=html, url=url, api_key_env=api_key_env,
    )  # fmt: skip


@app.command()
def demo(
    run: Annotated[str, typer.Option(help="Where the demo's stages and report go.")] = "runs/demo",
    cache: Annotated[Path, typer.Option(help="Where the corpus is kept between runs.")] = Path(
        ".cache/fluent"
    ),
    overrides: opt.Overrides = None,
) -> None:
    """Run the whole chain on the Fluent emoji corpus and write runs/demo/report/report.html.

    Example: `zscmr demo`
    """
    from zscmr_ray.cli.demo import run_demo

    run_demo(run=run, cache=cache, overrides=overrides or [])


app.command()(ablation.ablate)
app.command()(ablation.compare)
app.command()(estimate)
app.command()(doctor)
app.command()(cluster.up)
app.command()(cluster.down)
app.command()(directories.status)
app.command()(directories.verify)
app.command()(interop.convert)
app.command()(interop.duplicates)
app.command()(export)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(submit)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    prepare_environment()
    return exit_code_of(lambda: app(list(arguments)))


def run_job(verb: str) -> None:
    """What jobs/<verb>.py does: the verb with this process's arguments; the exit code is printed last.

    `ray job submit` knows only success and failure, so the log says which of our exit codes it was.
    """
    code = run([verb, *sys.argv[1:]])
    print(f"exit code: {code}", flush=True)
    raise SystemExit(code)


def main() -> None:
    """Entry point of the `zscmr` command."""
    raise SystemExit(run(sys.argv[1:]))
