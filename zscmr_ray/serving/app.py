"""Starting and stopping the service on the Ray this process is connected to.

What it is: the checks before, the wait until it answers, draining and taking down. What it is not: the deployments
(topology.py, whose `build_app` and `app_from_config` are here too), the work (service.py), or `ray.init`, the caller's.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

from ray import serve

from zscmr_ray.client import Client
from zscmr_ray.config import Config
from zscmr_ray.errors import ConfigError, ServingError
from zscmr_ray.serving.encoding import EncoderPool
from zscmr_ray.serving.guard import read_api_keys
from zscmr_ray.serving.live import LiveIndexes
from zscmr_ray.serving.metrics import Metrics
from zscmr_ray.serving.releases import Release, Releases, check_servable, ensure_released, index_runs, run_of
from zscmr_ray.serving.service import SearchService
from zscmr_ray.serving.shelf import Shelf
from zscmr_ray.serving.topology import APP_NAME, app_from_config, build_app
from zscmr_ray.serving.version import IndexVersion, load_reranking, load_version, need_bytes
from zscmr_ray.stages import stage_store

__all__ = [
    "APP_NAME",
    "app_from_config",
    "base_url",
    "build_app",
    "deploy",
    "open_service",
    "run_serve",
    "running",
    "start",
    "stop",
]

_ANSWER_WAIT_S = 15.0
_LOGGING = {"log_level": "WARNING", "enable_access_log": False}


def open_service(config: Config) -> SearchService:
    """The fused service in this process, without Ray and without watching; RefusedError when index and model differ."""
    ensure_released(config)
    settings, metrics = config.serve, Metrics()
    releases = {name: Releases(uri) for name, uri in index_runs(config).items()}
    pool = EncoderPool(settings, metrics)

    def load(index: str, release: Release) -> IndexVersion:
        version = load_version(index, releases[index], release, pool, settings, metrics)
        reranking = load_reranking(releases[index], release, version.searcher, settings, metrics)
        if reranking is None:
            return version

        def close() -> None:
            reranking.close()
            version.close()

        return replace(version, reranking=reranking, on_close=close)

    shelf = Shelf(
        releases,
        load,
        lambda index, release: need_bytes(releases[index], release, pool),
    )
    live = LiveIndexes(releases, shelf, metrics)
    live.open()
    return SearchService(live, settings, metrics)


def start(config: Config) -> str:
    """Deploy the application on the connected Ray and return its base URL once it answers.

    Raises RefusedError (model and index differ), DataError (a stage is missing), ConfigError (no API key, port taken),
    ServingError (a replica did not come up).
    """
    settings = config.serve
    read_api_keys(settings)
    for run_uri in index_runs(config).values():
        check_servable(run_of(config, run_uri))
    if not _outlives_us(config):
        _check_port(settings.host, settings.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location="HeadOnly" if settings.is_loopback else "EveryNode",
        http_options={"host": settings.host, "port": settings.port},
        logging_config=_LOGGING,
    )
    try:
        deploy(config)
    except RuntimeError as error:
        reason = _failure(str(error))
        stop(config)
        raise ServingError(
            "the service did not start", got=reason, expected=f"{settings.num_replicas} healthy replica(s)"
        ) from error
    url = base_url(settings.host, settings.port)
    # Serve keeps the address of whoever started it first on this Ray, and says so in a log only.
    if not _outlives_us(config) and not _answers(url):
        stop(config)
        raise ServingError(
            "nothing answers where the service should be",
            got=f"no answer at {url} in {_ANSWER_WAIT_S:g} s",
            remedy="Serve may run on this Ray with another port already: start the service in a process of its own",
        )
    return url


def deploy(config: Config) -> None:
    """Have Serve, which runs, bring up the application, or change the one that runs to this configuration."""
    serve.run(build_app(config), name=APP_NAME, route_prefix="/", logging_config=_LOGGING)


def _answers(url: str) -> bool:
    with Client(url) as client:
        return client.ready(wait_s=_ANSWER_WAIT_S)


def _outlives_us(config: Config) -> bool:
    """Whether Ray is a cluster that was there before, and not one that this process started."""
    return config.ray.cluster_address is not None


def _failure(fallback: str) -> str:
    """Why the replicas failed, in one line: the last one of the traceback that Serve keeps."""
    status = serve.status().applications.get(APP_NAME)
    messages = [d.message for d in status.deployments.values() if d.message] if status else []
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line and ":" in line]
    return (named or lines or [fallback])[-1]


def stop(config: Config) -> None:
    """Take the application down once its requests have ended; new ones are told 503 meanwhile.

    On a cluster that outlives this process Serve goes as well, when nothing else uses it. A Ray of this
    process's own ends with Serve in it: shutting Serve down first only prints its controller's death.
    """
    _drain(config)
    serve.delete(APP_NAME)
    if _outlives_us(config) and not serve.status().applications:
        serve.shutdown()


def _drain(config: Config) -> None:
    """Have every replica end what it has; a service that did not come up has nothing to drain."""
    status = serve.status().applications.get(APP_NAME)
    if status is None or status.status != "RUNNING":
        return
    try:
        left = sum(
            serve.get_app_handle(APP_NAME)
            .broadcast("drain")
            .results(timeout_s=config.serve.drain_timeout_s + 5.0)
        )
    except Exception as error:
        print(f"draining failed ({type(error).__name__}): requests in progress may be lost", flush=True)
        return
    if left:
        print(f"{left} request(s) did not end in {config.serve.drain_timeout_s:g} s", flush=True)


@contextlib.contextmanager
def running(config: Config) -> Iterator[str]:
    """The service for the length of a block; gives its base URL."""
    url = start(config)
    try:
        yield url
    finally:
        stop(config)


def run_serve(config: Config, *, block: bool = True) -> str:
    """Start the service, say where it is, and, if `block`, serve until SIGINT or SIGTERM; returns the base URL."""
    url = start(config)
    print(f"serving {stage_store(config, 'index').uri} at {url} (search page: {url}/)", flush=True)
    if block:
        try:
            _wait_for_signal()
        finally:
            stop(config)
    return url


def base_url(host: str, port: int) -> str:
    """The URL at which this machine reaches a service bound to a host.

    >>> base_url("0.0.0.0", 8000), base_url("::1", 80)
    ('http://127.0.0.1:8000', 'http://[::1]:80')
    """
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                "the HTTP port cannot be used",
                got=f"{host}:{port}: {error.strerror}",
                remedy="stop what listens there, or --set serve.port=<another>",
            ) from error


def _wait_for_signal() -> None:
    ended = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        while not ended.wait(1.0):
            pass
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
