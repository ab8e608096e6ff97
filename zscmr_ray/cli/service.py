"""`zscmr serve`: the service on a Ray of this command's own, or on the cluster it was pointed at."""

from __future__ import annotations

from zscmr_ray.cli.session import ray_session
from zscmr_ray.config import Config


def serve_until_interrupted(config: Config) -> None:
    """Start the service and keep it up until SIGINT or SIGTERM."""
    # Before Ray is started: what cannot be served is said at once.
    from zscmr_ray.serving.app import run_serve
    from zscmr_ray.serving.releases import check_servable

    check_servable(config)
    with ray_session(config.ray):
        run_serve(config, block=True)
