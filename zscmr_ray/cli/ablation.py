"""The verbs that weigh runs against each other: `zscmr ablate` and `zscmr compare`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from zscmr_ray.cli import options as opt
from zscmr_ray.cli.session import ray_session
from zscmr_ray.config import Config
from zscmr_ray.errors import ConfigError


def ablate(
    pairs: Annotated[
        list[str],
        typer.Option(
            "--pairs", help="A corpus: NAME=URI of finished pairs/ (repeatable).", show_default=False
        ),
    ],
    preset: Annotated[str | None, typer.Option(help="Recipes, splits and settings: core or full.")] = None,
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", help="A recipe (repeatable); replaces the preset's.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="A class split: even_odd, random:1, ... (repeatable).")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option("--seed", help="A training seed (repeatable).")] = None,
    reference: Annotated[
        str | None, typer.Option(help="The recipe that the others are tested against; default: the first.")
    ] = None,
    config: opt.ConfigFile = None,
    overrides: opt.Overrides = None,
    run: opt.RunDirectory = None,
    address: opt.Address = None,
    dry_run: opt.DryRun = False,
) -> None:
    """Train and evaluate recipes x class splits x seeds, write one table: table.json, table.md, ablation.html.

    Example: `zscmr ablate --preset core --pairs demo=runs/demo/pairs --run runs/core`

    The same command goes on where it stopped; more recipes, splits or seeds keep what is finished.
    """
    from zscmr_ray.stages.ablate import PRESETS, make_plan, run_ablate
    from zscmr_ray.stages.ablate.plan import DEFAULT_SETTINGS

    if preset is not None and preset not in PRESETS:
        raise ConfigError("unknown preset", got=preset, expected=", ".join(PRESETS))
    chosen = PRESETS[preset] if preset is not None else None
    recipes = tuple(recipe or (chosen.recipes if chosen else ()))
    settings = [*DEFAULT_SETTINGS, *(chosen.settings if chosen else ()), *(overrides or [])]

    def configure(name: str) -> Config:
        return opt.configure(config, name, settings, run=run, address=address).config

    base = configure("fgan")
    first = recipes[0] if recipes else ""
    plan = make_plan(
        base.data.run_uri,
        corpora_of(pairs),
        recipes=recipes,
        splits=tuple(split or (chosen.splits if chosen else ("even_odd",))),
        seeds=tuple(seed or (chosen.seeds if chosen else (0,))),
        reference=reference or (chosen.reference if chosen and chosen.reference in recipes else first),
        configure=configure,
    )
    if dry_run:
        typer.echo("\n".join(f"{trial.name}" for trial in plan.trials))
        return
    with ray_session(base.ray):
        result = run_ablate(plan)
    typer.echo(result.info["summary"])
    typer.echo(
        f"ablate: {', '.join(f'{value} {name}' for name, value in result.counts.items())}; {result.directory}"
    )


def corpora_of(texts: list[str]) -> dict[str, str]:
    """Return name -> URI of `--pairs` options; raises ConfigError for one that is not NAME=URI, or named twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, uri = text.partition("=")
        if not equals or not name or not uri or name in found:
            raise ConfigError(
                "not a corpus, or named twice", got=f"--pairs {text}", expected="--pairs NAME=URI"
            )
        found[name] = uri
    return found


def compare(
    ours: Annotated[
        str, typer.Argument(metavar="RUN_A", help="An evaluated run, or several: A1,A2 (one per split).")
    ],
    theirs: Annotated[str, typer.Argument(metavar="RUN_B", help="What it is compared with, as many.")],
    our_method: Annotated[
        str | None,
        typer.Option("--method-a", help="Row of A's reports: both, regions, cca ...; default: the main one."),
    ] = None,
    their_method: Annotated[str | None, typer.Option("--method-b", help="Row of B's reports.")] = None,
    condition: Annotated[str, typer.Option(help="U|U, S|S, U|all or S|all.")] = "U|U",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Test whether A is better than B on unseen classes: gains in average precision, permuted by class.

    Example: `zscmr compare runs/best runs/fgan`, or `zscmr compare runs/best runs/best --method-b cca`
    """
    from zscmr_ray.stages.compare import compare_runs, comparison_lines

    found = compare_runs(
        ours.split(","),
        theirs.split(","),
        our_method=our_method,
        their_method=their_method,
        condition=condition,
    )
    typer.echo(json.dumps(found.as_json(), indent=2) if as_json else "\n".join(comparison_lines(found)))
