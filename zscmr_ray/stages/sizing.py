"""How large a cluster has to be: pure functions with worked examples, for docs/operations.md and cluster/sizes.yaml.

What a given cluster takes for a given corpus is `plane/forecast.py`; how a run spreads over its nodes `plane/resources.py`.
Numbers in the examples that were measured are from two CPU cores (docs/operations.md says which).
"""

from __future__ import annotations

import math

from zscmr_ray.config import PlaneSection
from zscmr_ray.errors import ConfigError
from zscmr_ray.stages.plane.forecast import Estimate, Probe, estimate_run
from zscmr_ray.stages.plane.resources import NodeResources, fleet_of

MAX_NODES = 4096
_FLOAT_BYTES = 4
# Above this share of its time a queue before a replica grows faster than its load (M/M/1: 2.5 times the bare time).
_BUSY_FRACTION = 0.6


def decode_cpus_per_gpu(encode_images_per_s: float, decode_images_per_cpu_s: float) -> int:
    """CPUs that keep one GPU busy, rounded up: what it encodes over what a CPU decodes, both in images a second.

    A small model (2,000 images/s on a GPU) beside web-size JPEGs (228 a CPU-second with a thumbnail) needs nine CPUs: more
    than its own machine has, so CPU machines help. A large one (300/s) needs two.

    >>> decode_cpus_per_gpu(2000, 228), decode_cpus_per_gpu(300, 228)
    (9, 2)
    """
    return max(1, math.ceil(encode_images_per_s / decode_images_per_cpu_s))


def chunk_bytes(chunk_rows: int, size_px: int) -> int:
    """Bytes of one decoded chunk: `chunk_rows` pictures of uint8 RGB.

    >>> chunk_bytes(64, 224)
    9633792
    """
    return chunk_rows * size_px * size_px * 3


def replicas_for(requests_per_s: float, service_s: float, *, spare: int = 1) -> int:
    """Replicas that answer a load, each busy at most 60% of its time, with `spare` of them lost.

    `service_s` is a replica's own time for one request (one after the other; batches only lower it). 100 requests a second
    of 25 ms each are 2.5 replicas' time: 5 at 60%, and one more so that one may be lost.

    >>> replicas_for(100, 0.025)
    6
    >>> replicas_for(0.1, 0.025, spare=0)
    1
    """
    return max(1, math.ceil(requests_per_s * service_s / _BUSY_FRACTION)) + spare


def index_bytes(num_rows: int, dimensions: int) -> int:
    """Memory that a replica needs to search a flat index: float32 vectors, mapped and read whole by every query.

    A million 512-d vectors are 2 GB. A billion are 2 TB, which no replica holds: one service searches tens of millions.

    >>> index_bytes(10**6, 512), index_bytes(10**9, 512) // 10**9
    (2048000000, 2048)
    """
    return num_rows * dimensions * _FLOAT_BYTES


def search_s(num_rows: int, dimensions: int, *, bytes_per_s: float) -> float:
    """Seconds of one query alone in a flat index: the time to read it. A batch of 32 takes about four times one query.

    100,000 vectors of 512 at the 20 GB/s that one core was measured to read: 10 ms.

    >>> round(search_s(100_000, 512, bytes_per_s=20e9), 4)
    0.0102
    """
    return index_bytes(num_rows, dimensions) / bytes_per_s


def nodes_for_deadline(
    probe: Probe, node: NodeResources, plane: PlaneSection, *, num_rows: int, deadline_s: float
) -> tuple[int, Estimate]:
    """The fewest nodes of a kind that do `num_rows` rows within a deadline, and the estimate on them (without a price).

    Raises ConfigError when the start alone takes longer, or more than 4,096 nodes would be needed.

    A hundred million pictures at 3 ms of decoding and 25 ms of encoding on a CPU, in a day, by machines of 16 CPUs: 3 ms
    and 25 ms and 0.5 ms of commit are 2,850,000 CPU-seconds, of which a machine gives 16 x 0.93 a second: 3 of them.

    >>> from zscmr_ray.stages.plane.chunks import Effort
    >>> effort = Effort(decode_cpu_s=0.6, encode_cpu_s=5.0, encode_s=5.0, write_s=0.01, write_bytes=400_000)
    >>> probe = Probe(200, 200, effort, 0.12, 0.1, part_bytes=300_000, chunk_bytes=10 << 20, encoder_bytes=600 << 20,
    ...     encoder_start_s=2.0, total_rows=10**8, shard_rows=10_000)
    >>> nodes, found = nodes_for_deadline(probe, NodeResources(16), PlaneSection(), num_rows=10**8, deadline_s=86_400)
    >>> nodes, round(found.time_s / 3600), found.bottleneck
    (3, 18, 'the CPUs')
    """
    # The estimate falls with every node (or stays), so that halving finds the fewest.
    low, high = 1, MAX_NODES
    while low < high:
        middle = (low + high) // 2
        if _on_nodes(probe, node, plane, middle, num_rows).time_s <= deadline_s:
            high = middle
        else:
            low = middle + 1
    found = _on_nodes(probe, node, plane, low, num_rows)
    if found.time_s > deadline_s:
        raise ConfigError(
            "no number of these nodes is in time",
            got=f"{found.time_s:,.0f} s on {low:,} nodes, limited by {found.bottleneck}",
            expected=f"{deadline_s:,.0f} s",
            remedy="a later deadline, larger nodes, or nodes with GPUs",
        )
    return low, found


def _on_nodes(
    probe: Probe, node: NodeResources, plane: PlaneSection, num_nodes: int, num_rows: int
) -> Estimate:
    return estimate_run(probe, fleet_of([node] * num_nodes, plane), num_rows)
