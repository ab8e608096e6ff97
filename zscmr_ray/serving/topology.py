"""The application's deployments in both topologies, and `build_app(config)`; nothing is built at import.

    fused   Search: HTTP, encoder and mapped index in every replica (one hop)
    split   Search: HTTP only; Encoders: a pool; Shard0 ... ShardN-1: a share of the index each
    both    Rerank: the second stage, where a live index keeps regions

Both give the same answers, since only the place of encoding and searching differs (version.py, remote.py). What it is not:
starting and stopping (app.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from starlette.types import ASGIApp

import zscmr_ray
from zscmr_ray.config import Config, ServeSection
from zscmr_ray.config.load import load_config
from zscmr_ray.engine.vector_model import find_model
from zscmr_ray.errors import ConfigError
from zscmr_ray.manifest import require_manifest
from zscmr_ray.retrieval.region_store import REGIONS
from zscmr_ray.serving.encoding import EncoderPool, RememberedTexts
from zscmr_ray.serving.guard import read_api_keys
from zscmr_ray.serving.live import LiveIndexes
from zscmr_ray.serving.metrics import Snapshot
from zscmr_ray.serving.pools import EncoderDeployment, RerankDeployment, ShardDeployment
from zscmr_ray.serving.problems import RETRY_AFTER_S
from zscmr_ray.serving.releases import Release, Releases, ensure_released, index_runs
from zscmr_ray.serving.remote import Refusal, RemoteEncoding, RemoteSearching
from zscmr_ray.serving.replica import Replica, replica_context, snapshots_of
from zscmr_ray.serving.reranking import RemoteReranking, keeps_regions
from zscmr_ray.serving.routes import http_app
from zscmr_ray.serving.searcher import Searcher
from zscmr_ray.serving.service import SearchService
from zscmr_ray.serving.shelf import Shelf
from zscmr_ray.serving.version import (
    IndexVersion,
    label_weight_of,
    load_version,
    need_bytes,
)
from zscmr_ray.serving.wire import SearchRequest
from zscmr_ray.stages import stage_store
from zscmr_ray.storage import Store

APP_NAME = "zscmr"
_WIDTHS = (
    "num_replicas",
    "max_replicas",
    "target_ongoing_requests",
    "downscale_delay_s",
    "num_encoders",
    "max_encoders",
)


class SearchDeployment(Replica):
    """The ingress. `config` is plain JSON, so that it travels; `needs_key` = the driver saw an API key.

    With `encoders` and `shards` (handles) it is the thin one of the split topology.
    """

    def __init__(
        self,
        config: dict[str, Any],
        *,
        needs_key: bool = False,
        encoders: Any = None,
        shards: Sequence[Any] = (),
        reranker: Any = None,
    ) -> None:
        super().__init__(config)
        self._api_keys = read_api_keys(self._settings)
        if needs_key and not self._api_keys:
            raise ConfigError(
                "this node lacks the API key that the service was started with",
                expected=f"{self._settings.api_key_env} in the environment of every node",
            )
        self._encoders, self._shards, self._reranker = encoders, tuple(shards), reranker
        self._others = [handle for handle in (encoders, *shards, reranker) if handle is not None]
        self._pool = EncoderPool(self._settings, self._metrics)
        live = LiveIndexes(
            self._releases,
            Shelf(self._releases, self._load, self._need_bytes),
            self._metrics,
            prepare=self._prepare if self._others else None,
        )
        live.open()
        live.watch(self._settings.alias_poll_s)
        self._service = SearchService(live, self._settings, self._metrics)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The HTTP side; Serve calls this once the replica is built."""
        return http_app(
            self._service,
            self._settings,
            api_keys=self._api_keys,
            is_local=self._settings.is_loopback and not self._api_keys,
            gather=self.gather,
        )

    async def search(self, request: dict[str, Any]) -> dict[str, Any]:
        """The same search by a deployment handle: the wire's JSON in and out."""
        answer = await self._service.search(SearchRequest.model_validate(request))
        return answer.model_dump(mode="json")

    async def drain(self) -> int:
        """Refuse new requests, wait for those in progress; returns how many did not end in time."""
        return await self._service.drain(self._settings.drain_timeout_s)

    async def check_health(self) -> None:
        """Raise, so that Serve replaces this replica, when a batch does not end."""
        self._check(self._service.busy_s())

    async def gather(self) -> dict[str, Snapshot]:
        """The counts of every replica of the application."""
        return dict([await self.snapshot(), *await snapshots_of(self._deployments())])

    def _deployments(self) -> list[Any]:
        if replica_context() is None:
            return []
        own = serve.get_deployment_handle("Search", APP_NAME)
        return [own, *self._others]

    def _load(self, index: str, release: Release) -> IndexVersion:
        version = self._load_stages(index, release)
        if self._reranker is None or not keeps_regions(version.searcher):
            return version
        return replace(version, reranking=RemoteReranking(self._reranker, index=index, release_id=release.id))

    def _load_stages(self, index: str, release: Release) -> IndexVersion:
        releases = self._releases[index]
        if self._encoders is None:
            return load_version(index, releases, release, self._pool, self._settings, self._metrics)
        searcher = Searcher(releases.index_store(release))
        encoding = RemoteEncoding(self._encoders, index=index, release_id=release.id)
        return IndexVersion(
            index=index,
            searcher=searcher,
            label_weight=label_weight_of(releases, release),
            encoding=RememberedTexts(encoding, size=self._settings.text_cache_size, metrics=self._metrics),
            searching=RemoteSearching(
                self._shards, searcher, self._settings, index=index, release_id=release.id
            ),
            on_close=searcher.close,
        )

    def _need_bytes(self, index: str, release: Release) -> int:
        return need_bytes(self._releases[index], release, self._pool)

    def _prepare(self, index: str, release: Release) -> None:
        """Have every encoder, shard and reranker load a release; raises the first refusal."""
        for handle in self._others:
            for refusal in handle.broadcast("prepare", index, release.id).results():
                if isinstance(refusal, Refusal):
                    raise refusal.raised()


def build_app(config: Config) -> serve.Application:
    """Bind the application; models and indexes are loaded when Serve builds its replicas.

    What has an index but no release yet is released (releases.py). Raises DataError or RefusedError for what cannot be
    served, ConfigError without a needed key.
    """
    settings = config.serve
    needs_key = bool(read_api_keys(settings))
    ensure_released(config)
    # A replica's working directory may be another one.
    values = config.model_dump(mode="json")
    values["data"]["run_uri"] = Store(config.data.run_uri).uri
    # How many there are is no replica's business: a service that is made wider or narrower keeps its processes.
    for name in _WIDTHS:
        values["serve"][name] = ServeSection.model_fields[name].default
    values["serve"]["indexes"] = {name: Store(uri).uri for name, uri in settings.indexes.items()}
    values["embed"]["model"] = find_model(config.embed.model, own=stage_store(config, "train")).name
    version = _version_of(values)
    ingress = _deployed(
        serve.ingress()(SearchDeployment),
        config,
        version=version,
        name="Search",
        replicas=(settings.num_replicas, settings.max_replicas),
        num_cpus=settings.encoder_threads if settings.topology == "fused" else 0.5,
    )
    reranker = None
    if settings.rerank_replicas and _some_index_keeps_regions(config):
        replicas = (settings.rerank_replicas, None)
        reranker = _deployed(
            RerankDeployment,
            config,
            version=version,
            name="Rerank",
            replicas=replicas,
            num_cpus=settings.encoder_threads,
        ).bind(values)
    if settings.topology == "fused":
        return ingress.bind(values, needs_key=needs_key, reranker=reranker)
    encoders = _deployed(
        EncoderDeployment,
        config,
        version=version,
        name="Encoders",
        replicas=(settings.num_encoders, settings.max_encoders),
        num_cpus=settings.encoder_threads,
    ).bind(values)
    shards = [
        _deployed(
            ShardDeployment, config, version=version, name=f"Shard{number}", replicas=(1, None), num_cpus=0.5
        ).bind(values, number=number)
        for number in range(settings.num_shards)
    ]
    return ingress.bind(values, needs_key=needs_key, encoders=encoders, shards=shards, reranker=reranker)


def _some_index_keeps_regions(config: Config) -> bool:
    """Whether a live release holds regions. One that comes later with the first of them needs a restart."""
    for run_uri in index_runs(config).values():
        releases = Releases(run_uri)
        index = require_manifest(releases.index_store(releases.read(releases.require_alias().live)), "index")
        if any(part.name.endswith(f"/{REGIONS}") for part in index.parts):
            return True
    return False


def app_from_config(args: dict[str, str]) -> serve.Application:
    """Build the application from a Serve config file (RayService, `serve run`): args `config` (YAML) and `run` (URI).

    `import_path: zscmr_ray.serving.app:app_from_config`, `args: {config: ray_config.yaml, run: s3://bucket/run}`.
    """
    overrides = [f"data.run_uri={args['run']}"] if "run" in args else []
    return build_app(load_config(args.get("config"), overrides=overrides).config)


def _version_of(values: dict[str, Any]) -> str:
    """What a replica is made of: its configuration and this package's code. Serve keeps a process whose version stays."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path in sorted(Path(zscmr_ray.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _deployed(
    target: Any,
    config: Config,
    *,
    version: str,
    name: str,
    replicas: tuple[int, int | None],
    num_cpus: float,
) -> Any:
    settings = config.serve
    fewest, most = replicas
    scaling: dict[str, Any] = {"num_replicas": fewest}
    if most is not None:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=fewest,
                max_replicas=most,
                target_ongoing_requests=settings.target_ongoing_requests,
                downscale_delay_s=settings.downscale_delay_s,
            )
        }
    return serve.deployment(
        target,
        name=name,
        **scaling,
        # The replica's own bounds refuse first, with a problem that says why.
        max_ongoing_requests=2 * settings.max_queued_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        ray_actor_options={"num_cpus": num_cpus},
        # What makes a replica fail to build (a hash, a missing package) does not pass by trying again.
        max_constructor_retry_count=1,
        # How often a stopping replica looks whether its requests have ended (Serve's 2 s are two idle seconds).
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        # Without one of ours every `serve.run` gets a random version, and all replicas are replaced.
    ).options(version=version, _internal=True)
