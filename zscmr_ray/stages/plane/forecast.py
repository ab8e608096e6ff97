"""What a run will take: time, disk, memory and money, as a pure function of a probe of its input and of the cluster.

The probe (`probe.py`) did some rows of the real input in one process; this scales them. Not a promise: the run's end
says how far off it was.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from zscmr_ray.stages.plane.bottleneck import COMMIT, DECODE, ENCODE, STORAGE
from zscmr_ray.stages.plane.chunks import Effort
from zscmr_ray.stages.plane.resources import Fleet

CPUS = "the CPUs"
# From command to the first chunk without the model: Ray, workers, their imports (measured on two cores).
_START_S = 8.0
# What Ray's own processes and copies leave of the CPUs (preprocess: .95 of bare loops on two cores).
_CPU_SHARE = 0.93
# A decode or commit worker without its chunks: Python, Arrow, Pillow, Ray. The driver and Ray's own processes.
_WORKER_BYTES, _RAY_BYTES = 250 << 20, 1500 << 20
_CHUNKS_PER_WORKER = 4


@dataclass(frozen=True, slots=True)
class Probe:
    """What some rows of the real input cost: `effort` and commit seconds are theirs together, in one process.

    `part_bytes` is what their parts came to; `chunk_bytes` one decoded chunk; `encoder_bytes` the peak memory of a
    process that holds the model; `encoder_start_s` the loading of it. `total_rows` is the whole input's, estimated
    where it does not say; `shard_rows` the mean shard's.
    """

    num_rows: int
    num_out: int
    effort: Effort
    commit_s: float
    commit_cpu_s: float
    part_bytes: int
    chunk_bytes: int
    encoder_bytes: int
    encoder_start_s: float
    total_rows: int
    shard_rows: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What `num_rows` rows will take on a fleet; `cost` is None without a price."""

    num_rows: int
    time_s: float
    start_s: float
    rows_per_s: float
    bottleneck: str
    ceilings_rows_per_s: dict[str, float]
    output_bytes: int
    staging_bytes: int
    memory_bytes: int
    encoder_bytes: int
    cost: float | None

    def as_json(self) -> dict[str, Any]:
        """All of it, rounded, for `--json` and the stage's bookkeeping."""
        return {
            name: round(value, 2) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        } | {"ceilings_rows_per_s": {name: round(rate, 1) for name, rate in self.ceilings_rows_per_s.items()}}


def estimate_run(
    probe: Probe, fleet: Fleet, num_rows: int, *, price_per_hour: float | None = None
) -> Estimate:
    """Scale a probe to `num_rows` rows on a fleet; `price_per_hour` is one node's.

    200 rows took 0.6 CPU-seconds of decoding, 4.4 of encoding and 0.1 of committing. Two cores with two encoders could
    encode 90.9 rows/s, but share their 1.86 useful CPUs with the rest: 72.9 rows/s, 1,371 s for 100,000 rows, and 10 s
    until the first.

    >>> effort = Effort(decode_cpu_s=0.6, encode_cpu_s=4.4, encode_s=4.4, write_s=0.01, write_bytes=400_000)
    >>> probe = Probe(200, 200, effort, 0.12, 0.1, part_bytes=300_000, chunk_bytes=10 << 20, encoder_bytes=600 << 20,
    ...     encoder_start_s=2.0, total_rows=100_000, shard_rows=1000)
    >>> two_cores = Fleet(1, 2, num_encoders=2, encoder_threads=1, num_decoders=1, num_commits=1)
    >>> found = estimate_run(probe, two_cores, 100_000, price_per_hour=0.10)
    >>> found.bottleneck, round(found.rows_per_s, 1), round(found.time_s), round(found.cost, 3)
    ('the CPUs', 72.9, 1381, 0.038)
    >>> found.output_bytes, found.staging_bytes
    (150000000, 4000000)
    """
    ceilings = _ceilings(probe, fleet)
    bottleneck = min(ceilings, key=lambda name: ceilings[name])
    start_s = _START_S + probe.encoder_start_s
    time_s = start_s + num_rows / ceilings[bottleneck]
    # Whole shards wait for their last chunk, and one more for its commit.
    waiting_rows = min(num_rows, probe.shard_rows * (fleet.num_decoders + fleet.num_commits))
    workers_bytes = (fleet.num_decoders + fleet.num_commits) * _WORKER_BYTES
    chunks_bytes = _CHUNKS_PER_WORKER * (fleet.num_decoders + fleet.num_encoders) * probe.chunk_bytes
    return Estimate(
        num_rows=num_rows,
        time_s=time_s,
        start_s=start_s,
        rows_per_s=ceilings[bottleneck],
        bottleneck=bottleneck,
        ceilings_rows_per_s=ceilings,
        output_bytes=round(probe.part_bytes / probe.num_rows * num_rows),
        staging_bytes=round(probe.effort.write_bytes / probe.num_rows * waiting_rows),
        memory_bytes=fleet.num_encoders * probe.encoder_bytes + workers_bytes + chunks_bytes + _RAY_BYTES,
        encoder_bytes=probe.encoder_bytes,
        cost=None if price_per_hour is None else time_s / 3600 * price_per_hour * fleet.num_nodes,
    )


def _ceilings(probe: Probe, fleet: Fleet) -> dict[str, float]:
    """Rows/s that each step could do by itself on the fleet, and that the CPUs could do of all of them together."""
    effort, rows = probe.effort, probe.num_rows
    cpus = max(1.0, fleet.cpus)
    encode_s = effort.encode_s if fleet.has_gpus else effort.encode_cpu_s / fleet.encoder_threads
    all_cpu_s = effort.decode_cpu_s + effort.encode_cpu_s + probe.commit_cpu_s
    seconds = {
        DECODE: effort.decode_cpu_s / min(fleet.num_decoders, cpus),
        ENCODE: encode_s / fleet.encoders_at_once,
        # One stream was measured; a node is taken to have no more than that.
        STORAGE: (effort.read_s + effort.write_s) / fleet.num_nodes,
        COMMIT: probe.commit_s / fleet.num_commits,
        CPUS: all_cpu_s / (_CPU_SHARE * cpus),
    }
    return {name: rows / one_s for name, one_s in seconds.items() if one_s}


def error_line(estimate: Estimate, *, num_rows: int, elapsed_s: float) -> str:
    """The estimate for the rows a run has done beside what they took, its start included.

    >>> effort, fleet = Effort(decode_cpu_s=1.0), Fleet(1, 2, 2, 1, 1, 1)
    >>> probe = Probe(100, 100, effort, 0.0, 0.0, 0, 0, 0, 0.0, 100, 100.0)
    >>> error_line(estimate_run(probe, fleet, 1000), num_rows=1000, elapsed_s=21.6)
    'estimated 18.0 s for 1,000 rows, took 21.6 s (+20%)'
    """
    expected_s = estimate.start_s + num_rows / estimate.rows_per_s
    return (
        f"estimated {expected_s:.1f} s for {num_rows:,} rows, took {elapsed_s:.1f} s "
        f"({elapsed_s / max(expected_s, 1e-9) - 1:+.0%})"
    )
