"""What a run was limited by, from what its rows cost: the share of each step's ceiling that the run reached.

A ceiling is the rate at which that step alone would do the rows: decoding on every CPU, encoding in every encoder,
reading and writing in every stream. Not a forecast: `forecast.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from zscmr_ray.stages.plane.chunks import Effort
from zscmr_ray.stages.plane.resources import Fleet

DECODE, ENCODE, STORAGE, COMMIT = "decoding", "encoding", "storage", "committing"
# Below it no step of the pipeline was busy enough to hold the run up: start-up, waiting, other work on the machine.
_BUSY = 0.5


@dataclass(frozen=True, slots=True)
class Share:
    """A step: the rows a second it could do by itself, and the share of them that the run did."""

    step: str
    ceiling_rows_per_s: float
    share: float


@dataclass(frozen=True, slots=True)
class Usage:
    """A run's rows in its time, and their cost."""

    num_rows: int
    elapsed_s: float
    effort: Effort
    commit_s: float
    fleet: Fleet

    @property
    def rows_per_s(self) -> float:
        """The rate that the run reached."""
        return self.num_rows / max(self.elapsed_s, 1e-9)


def shares_of(usage: Usage) -> list[Share]:
    """Each step's share of its ceiling, the largest first; a step that took no time is left out.

    100 rows in 10 s on two CPUs that took 4 CPU-seconds of decoding and 15 seconds of two encoders: decoding alone
    could have done 50 rows/s, encoding 13.3.

    >>> fleet = Fleet(1, 2, num_encoders=2, encoder_threads=1, num_decoders=1, num_commits=1)
    >>> effort = Effort(decode_cpu_s=4.0, encode_cpu_s=15.0, encode_s=17.0, read_s=0.2, write_s=0.1)
    >>> [(share.step, round(share.share, 2)) for share in shares_of(Usage(100, 10.0, effort, 1.0, fleet))]
    [('encoding', 0.75), ('decoding', 0.2), ('committing', 0.1), ('storage', 0.02)]
    """
    effort, fleet = usage.effort, usage.fleet
    # A GPU's encoder is busy by the clock; on CPUs, waiting for a core is no work of its own.
    encode_s = effort.encode_s if fleet.has_gpus else effort.encode_cpu_s / fleet.encoder_threads
    busy_s = {
        DECODE: effort.decode_cpu_s / max(fleet.cpus, 1.0),
        ENCODE: encode_s / fleet.encoders_at_once,
        STORAGE: max(effort.read_s / fleet.num_decoders, effort.write_s / fleet.num_encoders),
        # In tasks of their own, or where the shards were encoded.
        COMMIT: usage.commit_s / fleet.num_commits + effort.commit_s / fleet.num_encoders,
    }
    found = [
        Share(step, usage.num_rows / seconds, seconds / max(usage.elapsed_s, 1e-9))
        for step, seconds in busy_s.items()
        if seconds
    ]
    return sorted(found, key=lambda share: -share.share)


def bottleneck_line(usage: Usage) -> str:
    """The shares in words, and what held the run up."""
    shares = shares_of(usage)
    said = ", ".join(
        f"{share.step} {share.share:.0%} of its {share.ceiling_rows_per_s:,.0f} rows/s" for share in shares
    )
    return f"{usage.rows_per_s:,.1f} rows/s; {said}; bottleneck: {_verdict(usage, shares)}"


def _verdict(usage: Usage, shares: list[Share]) -> str:
    by_step = {DECODE: 0.0, ENCODE: 0.0} | {share.step: share.share for share in shares}
    if shares and shares[0].share >= _BUSY:
        return shares[0].step
    # On CPUs decoding and encoding share the cores: together they may fill what neither does alone.
    if not usage.fleet.has_gpus and by_step[DECODE] + by_step[ENCODE] >= _BUSY:
        return f"the CPUs ({shares[0].step} first)"
    return "none of them (start-up, or other work on this machine)"
