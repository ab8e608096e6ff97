"""A small Ray for the length of a block, in a folder of its own."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

from zscmr_ray.config import RaySection


@contextlib.contextmanager
def own_ray(*, num_cpus: int, object_store_bytes: int) -> Iterator[None]:
    """Start one on so many logical CPUs, whatever Ray ran before, and stop it (only it) at the end."""
    import ray

    from zscmr_ray.cli.session import ray_session
    from zscmr_ray.serving.front import http_front

    ray.shutdown()
    # A short path: the sockets below it must stay under 107 characters.
    with tempfile.TemporaryDirectory(prefix="zr", ignore_cleanup_errors=True) as folder:
        section = RaySection(num_cpus=num_cpus, object_store_bytes=object_store_bytes, temp_dir=folder)
        with http_front(section), ray_session(section):
            yield
