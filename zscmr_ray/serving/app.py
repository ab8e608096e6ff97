"""The service as one Ray Serve application in its fused form: encoder and mapped index in each replica (DESIGN 6).

What it is: `build_app(config)`, and starting and stopping it on the Ray this process is connected to. Nothing is built
at import. What it is not: the work (service.py) or the routes (routes.py); `ray.init` is the caller's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import torch
from ray import serve
from ray.serve.config import BackpressureConfig
from starlette.types import ASGIApp

from zscmr_ray.client import Client
from zscmr_ray.config import Config
from zscmr_ray.config.load import load_config
from zscmr_ray.config.operator import OWN_CHECKPOINT
from zscmr_ray.engine.checkpoint import read_meta
from zscmr_ray.engine.vector_model import ModelPlace, find_model
from zscmr_ray.errors import ConfigError, ServingError
from zscmr_ray.manifest import Manifest, require_manifest
from zscmr_ray.schema import FOREIGN_MODEL
from zscmr_ray.serving.encoder import Encoder, ModelEncoder
from zscmr_ray.serving.guard import read_api_keys
from zscmr_ray.serving.problems import RETRY_AFTER_S
from zscmr_ray.serving.routes import http_app
from zscmr_ray.serving.searcher import Searcher, check_same_model
from zscmr_ray.serving.service import SearchService
from zscmr_ray.serving.vectors_only import VectorsOnly
from zscmr_ray.serving.wire import SearchRequest
from zscmr_ray.stages import stage_store
from zscmr_ray.storage import Store

APP_NAME = "zscmr"
_ANSWER_WAIT_S = 15.0
_LOGGING = {"log_level": "WARNING", "enable_access_log": False}


class SearchDeployment:
    """What runs in a replica. `config` is plain JSON, so that it travels; `needs_key` = the driver saw an API key."""

    def __init__(self, config: dict[str, Any], *, needs_key: bool = False) -> None:
        self._config = Config.model_validate(config)
        self._api_keys = read_api_keys(self._config.serve)
        if needs_key and not self._api_keys:
            raise ConfigError(
                "this node lacks the API key that the service was started with",
                expected=f"{self._config.serve.api_key_env} in the environment of every node",
            )
        torch.set_num_threads(self._config.serve.encoder_threads)
        self._service = open_service(self._config)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The HTTP side; Serve calls this once the replica is built."""
        settings = self._config.serve
        is_local = settings.is_loopback and not self._api_keys
        return http_app(self._service, settings, api_keys=self._api_keys, is_local=is_local)

    async def search(self, request: dict[str, Any]) -> dict[str, Any]:
        """The same search by a deployment handle: the wire's JSON in and out."""
        answer = await self._service.search(SearchRequest.model_validate(request))
        return answer.model_dump(mode="json")


def open_service(config: Config) -> SearchService:
    """Load the index and the model that made its vectors; RefusedError, naming both, when they do not fit."""
    place = check_servable(config)
    searcher = Searcher(stage_store(config, "index"))
    encoder: Encoder = VectorsOnly(searcher)
    if place is not None:
        encoder = ModelEncoder(place, max_pixels=config.serve.max_pixels)
    return SearchService(encoder, searcher, config.serve)


def check_servable(config: Config) -> ModelPlace | None:
    """Refuse in a moment, before anything is loaded, what could not be served: DataError or RefusedError.

    A pretrained model's fingerprint is known when it is loaded: SearchService checks it then. None: vectors of another
    program, which nothing here can encode queries for.
    """
    index = require_manifest(stage_store(config, "index"), "index")
    place = served_model(config, index)
    if place is None:
        return None
    if place.name == OWN_CHECKPOINT:
        require_manifest(stage_store(config, "train"), "train")
    if place.checkpoint is not None:
        check_same_model(read_meta(place.checkpoint).fingerprint, str(index.info["fingerprint"]))
    return place


def served_model(config: Config, index: Manifest) -> ModelPlace | None:
    """The model that encodes queries: `embed.model` where it is set, else the one the index names (None: foreign)."""
    name = config.embed.model
    if name == OWN_CHECKPOINT:
        name = str(index.info.get("model", OWN_CHECKPOINT))
    if name.startswith(FOREIGN_MODEL):
        return None
    return find_model(name, own=stage_store(config, "train"))


def build_app(config: Config) -> serve.Application:
    """Bind the application; nothing is loaded until Serve builds its replicas."""
    settings = config.serve
    # A replica's working directory may be another one.
    values = config.model_dump(mode="json")
    values["data"]["run_uri"] = Store(config.data.run_uri).uri
    values["embed"]["model"] = find_model(config.embed.model, own=stage_store(config, "train")).name
    deployment = serve.deployment(
        serve.ingress()(SearchDeployment),
        name="Search",
        num_replicas=settings.num_replicas,
        # More than a batch: the next one queues inside the replica while this one runs.
        max_ongoing_requests=4 * settings.max_batch_size,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        ray_actor_options={"num_cpus": settings.encoder_threads},
        # What makes a replica fail to build (a hash, a missing package) does not pass by trying again.
        max_constructor_retry_count=1,
        # How often a stopping replica looks whether its requests have ended (Serve's 2 s are two idle seconds).
        graceful_shutdown_wait_loop_s=0.2,
    )
    return deployment.bind(values, needs_key=bool(read_api_keys(settings)))


def app_from_config(args: dict[str, str]) -> serve.Application:
    """Build the application from a Serve config file (RayService, `serve run`): args `config` (YAML) and `run` (URI).

    `import_path: zscmr_ray.serving.app:app_from_config`, `args: {config: ray_config.yaml, run: s3://bucket/run}`.
    """
    overrides = [f"data.run_uri={args['run']}"] if "run" in args else []
    return build_app(load_config(args.get("config"), overrides=overrides).config)


def start(config: Config) -> str:
    """Deploy the application on the connected Ray and return its base URL once it answers.

    Raises RefusedError (model and index differ), DataError (a stage is missing), ConfigError (no API key, port taken),
    ServingError (a replica did not come up).
    """
    settings = config.serve
    read_api_keys(settings)
    check_servable(config)
    if not _outlives_us(config):
        _check_port(settings.host, settings.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location="HeadOnly" if settings.is_loopback else "EveryNode",
        http_options={"host": settings.host, "port": settings.port},
        logging_config=_LOGGING,
    )
    try:
        serve.run(build_app(config), name=APP_NAME, route_prefix="/", logging_config=_LOGGING)
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


def _answers(url: str) -> bool:
    with Client(url) as client:
        return client.ready(wait_s=_ANSWER_WAIT_S)


def _outlives_us(config: Config) -> bool:
    """Whether Ray is a cluster that was there before, and not one that this process started."""
    return bool(config.ray.address or os.environ.get("RAY_ADDRESS"))


def _failure(fallback: str) -> str:
    """Why the replicas failed, in one line: the last one of the traceback that Serve keeps."""
    status = serve.status().applications.get(APP_NAME)
    messages = [d.message for d in status.deployments.values() if d.message] if status else []
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line and ":" in line]
    return (named or lines or [fallback])[-1]


def stop(config: Config) -> None:
    """Take the application down; on a cluster that outlives this process Serve as well, when nothing else uses it.

    A Ray of this process's own ends with Serve in it: shutting Serve down first only prints its controller's death.
    """
    serve.delete(APP_NAME)
    if _outlives_us(config) and not serve.status().applications:
        serve.shutdown()


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
