"""The section of the HTTP service: where it listens, how wide it runs, what it refuses, and how it changes."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from zscmr_ray.config.base import Section, setting
from zscmr_ray.errors import ConfigError

DEFAULT_INDEX = "default"
"""The name of the index of `data.run_uri`."""


class ServeSection(Section):
    """The HTTP service."""

    host: str = setting("127.0.0.1", "place", "bind address; anything but loopback needs an API key")
    port: int = setting(8000, "place", "HTTP port", ge=1, le=65535)
    api_key_env: str = setting(
        "ZSCMR_API_KEY", "place", "environment variable holding the API key(s), comma-separated"
    )
    topology: Literal["fused", "split"] = setting(
        "fused",
        "speed",
        "fused = encoder and index in every replica (one hop); split = a pool of encoders and num_shards index shards "
        "behind a thin ingress; both give the same answers",
    )
    num_replicas: int = setting(1, "speed", "replicas that take requests; the fewest when they scale", ge=1)
    max_replicas: int | None = setting(
        None, "speed", "scale up to this many by ongoing requests; none = always num_replicas", ge=1
    )
    target_ongoing_requests: float = setting(
        16.0, "speed", "requests in progress per replica that scaling aims at", gt=0
    )
    downscale_delay_s: float = setting(
        600.0, "speed", "how long fewer replicas must be enough before some go, in seconds", ge=0
    )
    num_encoders: int = setting(1, "speed", "split: encoder replicas; the fewest when they scale", ge=1)
    max_encoders: int | None = setting(
        None, "speed", "split: scale encoders up to this many; none = always num_encoders", ge=1
    )
    num_shards: int = setting(2, "speed", "split: parts of the index searched side by side", ge=1)
    shard_timeout_ms: int = setting(
        2000,
        "output",
        "split: a shard that has not answered by then is left out, and the answer says so",
        ge=1,
    )
    indexes: dict[str, str] = setting(
        {},
        "place",
        "more indexes side by side: name -> run (the request's field `index`); data.run_uri is `default`",
    )
    encoder_threads: int = setting(1, "speed", "torch threads of one replica", ge=1)
    max_batch_size: int = setting(32, "speed", "queries encoded together", ge=1)
    max_queued_requests: int = setting(128, "speed", "requests in progress per replica before 503", ge=1)
    max_queue_ms: int = setting(
        1000,
        "speed",
        "a request that would wait longer than this in the replica is refused at once with 503",
        ge=1,
    )
    max_picture_queue_ms: int = setting(
        100,
        "speed",
        "the same for pictures, of which a few fill a replica; it bounds how much slower answers get under overload",
        ge=1,
    )
    text_cache_size: int = setting(
        4096,
        "speed",
        "encoded query texts kept per replica and index version (4 bytes a number); 0 = none",
        ge=0,
    )
    alias_poll_s: float = setting(
        1.0, "speed", "how often a replica looks whether another release is live, in seconds", gt=0
    )
    keep_releases: int = setting(
        3, "place", "releases kept on disk for --rollback, the live one included", ge=2
    )
    rerank_top_n: int = setting(
        100, "output", "rerank: the best by vector that the fused attention orders anew", ge=1, le=1000
    )
    rerank_replicas: int = setting(
        1, "speed", "replicas of the re-ranking deployment, where an index keeps regions; 0 = none", ge=0
    )
    rerank_timeout_ms: int = setting(
        2000,
        "output",
        "rerank: without an answer by then the first stage's order is given, and said so",
        ge=1,
    )
    wedged_after_s: float = setting(
        30.0, "speed", "a batch that runs longer makes its replica unhealthy, and Serve replaces it", gt=0
    )
    drain_timeout_s: float = setting(
        20.0, "speed", "time that requests in progress have to end when the service stops", ge=0
    )
    log_level: Literal["INFO", "WARNING"] = setting(
        "INFO", "place", "INFO = one JSON line per request; WARNING = only what went wrong"
    )
    log_dir: str | None = setting(
        None, "place", "folder for each replica's JSON lines; none = its stderr (Ray's logs)"
    )
    default_deadline_ms: int = setting(
        5000, "output", "time a request may take when it names none, in ms", ge=1
    )
    max_body_bytes: int = setting(12_000_000, "output", "largest request body, in bytes", ge=1024)
    max_pixels: int = setting(64_000_000, "output", "larger query images are refused before decoding", ge=1)
    max_embedding_inputs: int = setting(256, "output", "largest number of inputs of /v1/embeddings", ge=1)
    max_k: int = setting(100, "output", "largest number of results", ge=1)

    @model_validator(mode="after")
    def _scales_up(self) -> ServeSection:
        for most, fewest in (("max_replicas", "num_replicas"), ("max_encoders", "num_encoders")):
            if getattr(self, most) is not None and getattr(self, most) < getattr(self, fewest):
                raise ConfigError(
                    f"serve.{most} is smaller than serve.{fewest}",
                    got=f"{getattr(self, most)} < {getattr(self, fewest)}",
                    expected=f"serve.{most} >= serve.{fewest}, or none",
                )
        if DEFAULT_INDEX in self.indexes:
            raise ConfigError(
                "an index name is taken",
                got=f"serve.indexes.{DEFAULT_INDEX}",
                expected=f"another name: `{DEFAULT_INDEX}` is the index of data.run_uri",
            )
        return self

    @model_validator(mode="after")
    def _loopback_or_named_key(self) -> ServeSection:
        if not self.is_loopback and not self.api_key_env:
            raise ConfigError(
                "serve.host is not loopback and no API key is named",
                got=f"serve.host={self.host}, serve.api_key_env=''",
                expected="a loopback address, or the name of an environment variable with the key",
                remedy="--set serve.host=127.0.0.1 or --set serve.api_key_env=ZSCMR_API_KEY",
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")
