"""A driver: runs a stage on a small Ray of its own, of one node or of several on this machine, one of which may be lost.

`python -m tests.stages.driver_main <stage> <config as JSON> <number of nodes> <1: lose one after the first commit>`.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from zscmr_ray.cli.session import exit_code_of, prepare_environment, ray_session
from zscmr_ray.config import Config, RaySection
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.embed import run_embed
from zscmr_ray.stages.plane.commit import COMMITS
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.storage import Store

RUN = {"preprocess": run_preprocess, "embed": run_embed}
_STORE_BYTES = 200_000_000


@contextlib.contextmanager
def _nodes(count: int) -> Iterator[Any]:
    """Ray on so many nodes of a CPU each, head and driver on the first; yields the cluster (one node: None, two CPUs)."""
    prepare_environment()
    if count == 1:
        with ray_session(RaySection(num_cpus=2, object_store_bytes=_STORE_BYTES)):
            yield None
        return
    import ray
    from ray.cluster_utils import Cluster

    # A short path: the sockets below it must stay under 107 characters.
    with tempfile.TemporaryDirectory(prefix="zn", ignore_cleanup_errors=True) as folder:
        node = {"num_cpus": 1, "object_store_memory": _STORE_BYTES // 2}
        cluster = Cluster(initialize_head=True, head_node_args=node | {"temp_dir": folder})
        try:
            for _ in range(count - 1):
                cluster.add_node(**node)
            ray.init(cluster.address, log_to_driver=False, logging_level="warning")
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def _lose_one(cluster: Any, store: Store) -> None:
    """SIGKILL to every process of a node, once a part is committed and others are under way."""
    while not store.list(COMMITS):
        time.sleep(0.02)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    print("a node is gone", file=sys.stderr, flush=True)


def main() -> None:
    stage, config, num_nodes = sys.argv[1], Config.model_validate_json(sys.argv[2]), int(sys.argv[3])
    with _nodes(num_nodes) as cluster:
        if sys.argv[4] == "1":
            store = stage_store(config, stage)
            threading.Thread(target=_lose_one, args=(cluster, store), daemon=True).start()
        RUN[stage](config)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
