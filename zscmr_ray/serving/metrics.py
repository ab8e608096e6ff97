"""What is counted of each stage, for Prometheus, and how the counts of several replicas become one page.

What it is: one registry per replica and typed methods that stages call; `snapshot` turns a registry into plain JSON that
travels, `exposition` joins snapshots, each with its `replica` label. A scrape through the proxy reaches any one replica:
it asks all others for their snapshots (topology.py), so that counters never jump between two scrapes.
What it is not: Ray's own metrics (its dashboard agent exports those, per node, on ports of its own).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

Snapshot = list[dict[str, Any]]
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counts of one replica."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        at: Any = {"registry": self._registry, "namespace": "zscmr"}
        self._requests = Counter("requests", "answered requests", ("route", "status"), **at)
        self._request_s = Histogram(
            "request_seconds",
            "seconds from the request's head to its answer",
            ("route",),
            buckets=_SECONDS,
            **at,
        )
        self._in_flight = Gauge("requests_in_flight", "requests in progress", **at)
        self._refused = Counter("refused", "requests refused before any work", ("reason",), **at)
        self._stage_s = Histogram("stage_seconds", "seconds of one batch", ("stage",), buckets=_SECONDS, **at)
        self._batch_size = Histogram("batch_size", "requests in one batch", ("stage",), buckets=_SIZES, **at)
        self._queue = Gauge("queue_length", "requests that wait for a stage", ("stage",), **at)
        self._queue_s = Histogram(
            "queue_seconds", "seconds a request waited for a stage", ("stage",), buckets=_SECONDS, **at
        )
        self._errors = Counter("errors", "errors of a stage", ("stage", "kind"), **at)
        self._cache = Counter("text_cache", "look-ups of encoded query texts", ("result",), **at)
        self._live = Gauge(
            "index_live", "1 for the version that answers", ("index", "version", "model"), **at
        )
        self._swaps = Counter("index_swaps", "changes of the live version", ("index", "result"), **at)
        self._degraded = Counter("degraded", "answers that left something out", ("reason",), **at)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.labels(route, str(status)).inc()
        self._request_s.labels(route).observe(seconds)

    def in_flight(self, change: int) -> None:
        """Count a request in (+1) or out (-1)."""
        self._in_flight.inc(change)

    def refused(self, reason: str) -> None:
        """Count a request that was turned away: busy, queue, deadline, draining."""
        self._refused.labels(reason).inc()

    def batch(self, stage: str, size: int, seconds: float) -> None:
        """Count one finished batch."""
        self._batch_size.labels(stage).observe(size)
        self._stage_s.labels(stage).observe(seconds)

    def queue_length(self, stage: str, length: int) -> None:
        """Say how many wait now."""
        self._queue.labels(stage).set(length)

    def queued(self, stage: str, seconds: float) -> None:
        """Count one request's wait."""
        self._queue_s.labels(stage).observe(seconds)

    def failed(self, stage: str, error: BaseException) -> None:
        """Count an error of a stage."""
        self._errors.labels(stage, type(error).__name__).inc()

    def cache(self, *, hit: bool) -> None:
        """Count a look-up of an encoded text."""
        self._cache.labels("hit" if hit else "miss").inc()

    def live(self, index: str, *, version: str, model: str) -> None:
        """Say which version of an index answers now; the former one is dropped."""
        for labels in [labels for labels in self._live._metrics if labels[0] == index]:
            self._live.remove(*labels)
        self._live.labels(index, version, model).set(1)

    def swapped(self, index: str, *, result: str) -> None:
        """Count a change of version: live, or refused."""
        self._swaps.labels(index, result).inc()

    def degraded(self, reason: str) -> None:
        """Count an answer that left something out."""
        self._degraded.labels(reason).inc()

    def snapshot(self) -> Snapshot:
        """Every family as plain JSON."""
        return [
            {
                "name": family.name,
                "help": family.documentation,
                "type": family.type,
                "samples": [
                    [sample.name, dict(sample.labels), sample.value]
                    for sample in family.samples
                    # When a counter was made tells Prometheus nothing that a scrape does not.
                    if not sample.name.endswith("_created")
                ],
            }
            for family in self._registry.collect()
        ]


def exposition(snapshots: Mapping[str, Snapshot]) -> bytes:
    """The text format of several replicas' snapshots; each sample gets its `replica` label.

    >>> counts = Metrics(); counts.refused("busy")
    >>> b'zscmr_refused_total{reason="busy",replica="a"} 1.0' in exposition({"a": counts.snapshot()})
    True
    """
    families: dict[str, Metric] = {}
    for replica, snapshot in snapshots.items():
        for found in snapshot:
            family = families.setdefault(found["name"], Metric(found["name"], found["help"], found["type"]))
            for name, labels, value in found["samples"]:
                family.add_sample(name, {**labels, "replica": replica}, value)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(list(families.values())))
    return generate_latest(registry)


class _Families:
    """A collector that has collected already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """The families."""
        return self._families
