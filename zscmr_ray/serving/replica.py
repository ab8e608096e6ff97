"""What every deployment of the service has: the configuration, releases, counts, JSON logs and a name.

What it is: their base, and how one replica asks all others for their counts. What it is not: a deployment (topology.py,
pools.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import torch
from ray import serve
from ray.serve.exceptions import RayServeException

from zscmr_ray.config import Config
from zscmr_ray.errors import ServingError
from zscmr_ray.serving.logs import configure_logs
from zscmr_ray.serving.metrics import Metrics, Snapshot
from zscmr_ray.serving.releases import Releases, index_runs

_LOG = logging.getLogger(__name__)
_SNAPSHOT_WAIT_S = 2.0


class Replica:
    """The base of a deployment. `config` is plain JSON, so that it travels."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = Config.model_validate(config)
        self._settings = self._config.serve
        self._metrics = Metrics()
        self._releases = {name: Releases(uri) for name, uri in index_runs(self._config).items()}
        self.name = replica_name()
        configure_logs(self._settings, replica=self.name)
        torch.set_num_threads(self._settings.encoder_threads)

    async def snapshot(self) -> tuple[str, Snapshot]:
        """This replica's name and counts."""
        return self.name, self._metrics.snapshot()

    def _check(self, busy_s: float) -> None:
        if busy_s > self._settings.wedged_after_s:
            raise ServingError(
                "a batch does not end",
                got=f"{busy_s:.0f} s",
                expected=f"at most serve.wedged_after_s = {self._settings.wedged_after_s:g}",
            )


async def snapshots_of(handles: Sequence[Any]) -> list[tuple[str, Snapshot]]:
    """Names and counts of every replica of some deployments; one that does not answer is left out, and logged."""
    found: list[tuple[str, Snapshot]] = []
    for handle in handles:
        try:
            async with asyncio.timeout(_SNAPSHOT_WAIT_S):
                found += await asyncio.to_thread(_results, handle)
        except Exception as error:
            _LOG.warning("no metrics of %s: %s", handle, type(error).__name__)
    return found


def _results(handle: Any) -> list[tuple[str, Snapshot]]:
    found = handle.broadcast("snapshot").results(timeout_s=_SNAPSHOT_WAIT_S, return_exceptions=True)
    # A replica that is stopping has nothing to say.
    return [answer for answer in found if isinstance(answer, tuple)]


def replica_context() -> Any:
    """Serve's context of this replica; None outside of one."""
    try:
        return serve.get_replica_context()
    except RayServeException:
        return None


def replica_name() -> str:
    """Deployment and tag of this replica; `local` outside of one."""
    context = replica_context()
    return "local" if context is None else f"{context.deployment}-{context.replica_tag}"
