"""`zscmr serve`: the service on a Ray of this command's own, or on a cluster; and what a running one answers from."""

from __future__ import annotations

from zscmr_ray.cli.session import ray_session
from zscmr_ray.config import Config
from zscmr_ray.errors import ConfigError


def serve_until_interrupted(config: Config) -> None:
    """Start the service and keep it up until SIGINT or SIGTERM."""
    # Before Ray is started: what cannot be served is said at once.
    from zscmr_ray.serving.app import run_serve
    from zscmr_ray.serving.releases import check_servable

    check_servable(config)
    with ray_session(config.ray):
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
