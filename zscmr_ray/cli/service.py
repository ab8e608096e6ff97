"""`zscmr serve`: the service on a Ray of this command's own, or on a cluster; and what a running one answers from."""

from __future__ import annotations

from typing import Annotated

import typer

from zscmr_ray.cli import options as opt
from zscmr_ray.cli.session import ray_session
from zscmr_ray.cli.stages import plan
from zscmr_ray.config import Config
from zscmr_ray.errors import ConfigError


def serve(
    config: opt.ConfigFile = None,
    overrides: opt.Overrides = None,
    run: opt.RunDirectory = None,
    address: opt.Address = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Make the run's index and model live in its running service.")
    ] = False,
    reload_from: Annotated[
        str | None, typer.Option("--from", help="With --reload: another run whose index and model go live.")
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Make the release before the live one live again.")
    ] = False,
    dry_run: opt.DryRun = False,
) -> None:
    """Serve search over HTTP until interrupted, or change what a running service answers from.

    Example: `zscmr serve --run runs/mine --set serve.port=8000`, then open http://127.0.0.1:8000

    After another `zscmr index`: `zscmr serve --run runs/mine --reload`; back: `--rollback`. No request is lost.
    """
    loaded = opt.configure(config, "fgan", overrides, run=run, address=address)
    if dry_run:
        typer.echo("\n".join(plan(loaded.config, ("train", "index"))))
        return
    if reload or rollback or reload_from is not None:
        change_live(loaded.config, reload=reload, reload_from=reload_from, rollback=rollback)
        return
    serve_until_interrupted(loaded.config)


def serve_until_interrupted(config: Config) -> None:
    """Start the service and keep it up until SIGINT or SIGTERM."""
    # Before Ray is started: what cannot be served is said at once.
    from zscmr_ray.serving.app import run_serve
    from zscmr_ray.serving.front import http_front
    from zscmr_ray.serving.releases import check_servable

    check_servable(config)
    with http_front(config.ray), ray_session(config.ray):
        run_serve(config, block=True)


def change_live(config: Config, *, reload: bool, reload_from: str | None, rollback: bool) -> None:
    """Point the run's alias at another release; every replica follows by itself, whatever Ray it is on.

    Raises ConfigError for both at once, DataError or RefusedError for what must not go live: what is live then stays.
    """
    from zscmr_ray.serving import releases

    if rollback and (reload or reload_from is not None):
        raise ConfigError("one change at a time", got="--rollback and --reload", expected="one of them")
    if reload_from is not None and not reload:
        raise ConfigError("--from belongs to --reload", got="--from alone", remedy="add --reload")
    if rollback:
        release = releases.rollback(config)
    else:
        source = None if reload_from is None else releases.run_of(config, reload_from)
        release = releases.publish(config, source=source)
    print(f"live: {release.id} (index {release.index_version[:12]}, model {release.model_fingerprint[:12]})")
    print(f"running replicas follow within {config.serve.alias_poll_s:g} s and the time it takes to load")
