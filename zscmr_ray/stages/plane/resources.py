"""How wide preprocess and embed run: encoder actors and their logical CPUs, as a pure function of the cluster.

Logical CPUs are Ray's schedule, not a limit; threads are what runs. The one thing that must never happen is that
encoders take every logical CPU of a node: decode tasks then have nowhere to run, and the job hangs without an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zscmr_ray.config import PlaneSection
from zscmr_ray.errors import ConfigError

# Encoding on a CPU may be a tenth of decoding or ten times as much, so half of a node is kept for decode: as many tasks
# as it has CPUs, at 0.5 each. Whichever is the work gets the cores, by the system's scheduler and Ray's back-pressure;
# with a tenth, one of two cores had nothing to do when decoding was the work. Beside a GPU encoders hold less.
_DECODE_SHARE_BESIDE_CPU = 0.5
_DECODE_SHARE_BESIDE_GPU = 0.75
_CPUS_PER_COMMIT = 8
# Tasks for each process that does both steps: the last ones end within an eighth of the whole.
TASKS_PER_WORKER = 4
# So little is done before a second worker has started.
_SMALL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class NodeResources:
    """Logical CPUs and GPUs of one alive node."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Width:
    """The number of encoder actors, and the logical CPUs of one of them and of one decode task."""

    num_encoders: int
    encoder_cpus: float
    decode_cpus: float


def works_together(plane: PlaneSection, width: Width, task_bytes: Sequence[int]) -> bool:
    """Whether decode and encode share a process (`together.py`): on CPUs, when there are shards enough to share out.

    Pictures then never pass through the object store. Apart, the chunks of one large shard spread over all encoders, a
    GPU's encoder is fed by many decoders, and reads from a network overlap with work.

    >>> two = Width(num_encoders=2, encoder_cpus=0.49, decode_cpus=0.5)
    >>> works_together(PlaneSection(), two, [64 << 20] * 8), works_together(PlaneSection(), two, [64 << 20] * 7)
    (True, False)
    >>> works_together(PlaneSection(), two, [1000])
    True
    """
    if plane.steps != "auto":
        return plane.steps == "together"
    if plane.encoder_gpus or plane.encoder_threads > 1:
        return False
    is_small = sum(task_bytes) <= _SMALL_BYTES
    return is_small or len(task_bytes) >= TASKS_PER_WORKER * width.num_encoders


def fit_width(
    nodes: Sequence[NodeResources],
    plane: PlaneSection,
    *,
    max_encoders: int | None = None,
    autoscales: bool = False,
) -> Width:
    """Fit encoders to the nodes so that every node that hosts one still runs a decode task.

    `max_encoders` bounds the automatic number (small inputs are not worth more start-ups); `plane.num_encoders`
    overrides it. On a cluster that autoscales `nodes` are only those of now: encoders that do not fit wait for more, and
    `plane.num_encoders` says how many there may be. Raises ConfigError when encoders need GPUs that no node has.

    Two cores: two encoders of one thread hold about half a CPU each and leave one, two decode tasks.

    >>> fit_width([NodeResources(2)], PlaneSection())
    Width(num_encoders=2, encoder_cpus=0.49, decode_cpus=0.5)
    >>> fit_width([NodeResources(16)], PlaneSection(encoder_threads=2))
    Width(num_encoders=8, encoder_cpus=1.0, decode_cpus=0.5)
    >>> fit_width([NodeResources(1)], PlaneSection())
    Width(num_encoders=1, encoder_cpus=0.49, decode_cpus=0.5)
    >>> fit_width([NodeResources(16, gpus=2)], PlaneSection(encoder_gpus=1))
    Width(num_encoders=2, encoder_cpus=1.0, decode_cpus=0.5)
    >>> fit_width([NodeResources(0), NodeResources(4), NodeResources(4)], PlaneSection(num_encoders=3))
    Width(num_encoders=3, encoder_cpus=0.49, decode_cpus=0.5)
    >>> fit_width([NodeResources(0)], PlaneSection(num_encoders=4, encoder_gpus=1), autoscales=True)
    Width(num_encoders=4, encoder_cpus=0.49, decode_cpus=0.5)
    """
    # A node with less than one decode task's CPUs can still run smaller ones.
    largest_cpus = max((node.cpus for node in nodes), default=1.0) or 1.0
    decode_cpus = min(plane.decode_cpus, _floor(largest_cpus / 2))
    hosts = [(node, _capacity(node, plane)) for node in nodes if node.cpus > decode_cpus]
    hosts = [(node, capacity) for node, capacity in hosts if capacity]
    if plane.encoder_gpus and not hosts and not autoscales:
        raise ConfigError(
            "encoders need GPUs that no node has",
            got=f"encoder_gpus={plane.encoder_gpus}, nodes with {[node.gpus for node in nodes]} GPUs",
            remedy="set encoder_gpus=0 to encode on CPU, or use a cluster with GPUs",
        )
    fitted = sum(capacity for _, capacity in hosts) or 1
    wanted = plane.num_encoders or min(fitted, max_encoders or fitted)
    # More actors than fit are made to fit by smaller shares: Ray then places them, and threads oversubscribe. Where nodes
    # come for those that wait, they keep their share.
    crowding = 1.0 if autoscales else max(1.0, wanted / fitted)
    shares = [_share(node, capacity, plane, decode_cpus) / math.ceil(crowding) for node, capacity in hosts]
    share = min(shares, default=_floor(largest_cpus - decode_cpus))
    encoder_cpus = _floor(min(share, plane.encoder_threads))
    # Two steps that ask for the same CPUs are fused by Ray Data: pictures would be decoded inside the encoders.
    return Width(wanted, encoder_cpus - (0.01 if encoder_cpus == decode_cpus else 0), decode_cpus)


@dataclass(frozen=True, slots=True)
class Fleet:
    """What works at once in a run: CPUs of so many nodes, encoders of some threads, decode tasks, commits."""

    num_nodes: int
    cpus: float
    num_encoders: int
    encoder_threads: int
    num_decoders: int
    num_commits: int
    has_gpus: bool = False

    @property
    def encoders_at_once(self) -> float:
        """Encoders that have cores (or GPUs) of their own."""
        return (
            self.num_encoders
            if self.has_gpus
            else min(self.num_encoders, max(1.0, self.cpus / self.encoder_threads))
        )


def fleet_of(
    nodes: Sequence[NodeResources],
    plane: PlaneSection,
    *,
    max_encoders: int | None = None,
    autoscales: bool = False,
) -> Fleet:
    """What `fit_width` comes to on these nodes.

    >>> fleet_of([NodeResources(16)] * 2, PlaneSection())
    Fleet(num_nodes=2, cpus=32, num_encoders=32, encoder_threads=1, num_decoders=32, num_commits=4, has_gpus=False)
    """
    width = fit_width(nodes, plane, max_encoders=max_encoders, autoscales=autoscales)
    cpus = sum(node.cpus for node in nodes)
    left = cpus - width.num_encoders * width.encoder_cpus
    return Fleet(
        num_nodes=sum(node.cpus > 0 for node in nodes),
        cpus=cpus,
        num_encoders=width.num_encoders,
        encoder_threads=plane.encoder_threads,
        num_decoders=max(1, math.floor(left / width.decode_cpus + 1e-6)),
        num_commits=commits_at_once(cpus),
        has_gpus=bool(plane.encoder_gpus),
    )


def commits_at_once(cpus: float) -> int:
    """Few: each is a worker whose start costs 1.5 CPU-seconds, which two cores miss."""
    return max(1, int(cpus) // _CPUS_PER_COMMIT)


def _capacity(node: NodeResources, plane: PlaneSection) -> int:
    if plane.encoder_gpus:
        return math.floor(node.gpus / plane.encoder_gpus)
    # A node smaller than an encoder's threads still hosts one: slower, but it works.
    return max(1, math.floor(node.cpus / plane.encoder_threads)) if node.cpus else 0


def _share(node: NodeResources, capacity: int, plane: PlaneSection, decode_cpus: float) -> float:
    share = _DECODE_SHARE_BESIDE_GPU if plane.encoder_gpus else _DECODE_SHARE_BESIDE_CPU
    return (node.cpus - max(decode_cpus, share * node.cpus)) / capacity


def _floor(cpus: float) -> float:
    """Hundredths, rounded down: Ray's own unit is 0.0001, and sums must stay below the node's CPUs."""
    return math.floor(cpus * 100 + 1e-6) / 100
