"""Which index a gallery gets: flat where it stays within the stated bounds of memory and latency, else inverted lists.

Pure functions over sizes; rates are orders of magnitude of one CPU core, on the slow side (docs/index.md has measured
ones). What it is not: the tuning of an index (ivf_tuning.py), which decides how many lists a search really reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from zscmr_ray.errors import ConfigError
from zscmr_ray.retrieval.ivf import EXACT_ROWS
from zscmr_ray.retrieval.ivf_build import code_bytes

Kind = Literal["flat", "ivf"]
QUANTIZERS = ("none", "sq8", "pq")
# One core reads so many bytes of float32 vectors in a product, and scans so many of quantised ones.
READ_BYTES_PER_S = 10e9
SCAN_BYTES_PER_S = {"none": 8e9, "sq8": 8e9, "pq": 1e9}
# Share of the rows that a tuned search was seen to read at a million rows, generously.
READ_SHARE = 0.04
# The rest of a search: candidates re-scored, Python.
_FIXED_S = 0.001


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """The index of one gallery, and what it is expected to take: resident bytes, seconds of one query alone."""

    kind: Kind
    quantizer: str
    num_lists: int
    memory_bytes: int
    search_s: float


def choose_index(
    num_rows: int,
    dimension: int,
    *,
    kind: str,
    quantizer: str,
    max_memory_bytes: int,
    max_latency_ms: float,
) -> IndexPlan:
    """Return the first of flat, ivf sq8 and ivf pq that meets both bounds; a `kind` or `quantizer` other than auto stands.

    Galleries of a few thousand rows are flat whatever is asked for: their lists would be searched exactly as well. The
    stored vectors that candidates are re-scored from are mapped and not counted. Raises ConfigError, with the nearest
    miss, when nothing meets the bounds.

    The demo (1,852 rows) is 11 MB and a millisecond: flat. A million rows of 512 are 2 GB, 0.2 s a query: inverted lists
    of 0.5 GB. Ten million in one segment are 5.2 GB as sq8, 1.4 GB as pq:

    >>> bounds = {"kind": "auto", "quantizer": "auto", "max_memory_bytes": 4 << 30, "max_latency_ms": 50.0}
    >>> [choose_index(n, 512, **bounds).kind for n in (1_852, 200_000, 10**6)]
    ['flat', 'flat', 'ivf']
    >>> plan = choose_index(10**6, 512, **bounds)
    >>> plan.quantizer, plan.num_lists, plan.memory_bytes // 10**6
    ('sq8', 2048, 524)
    >>> plan = choose_index(10**7, 512, **bounds)
    >>> plan.quantizer, plan.memory_bytes // 10**6
    ('pq', 1376)
    """
    flat = IndexPlan("flat", "none", 0, *_flat_cost(num_rows, dimension))
    if kind == "flat" or num_rows <= EXACT_ROWS:
        return flat
    named = QUANTIZERS[1:] if quantizer == "auto" else (quantizer,)
    lists = [
        IndexPlan("ivf", name, list_count(num_rows), *_ivf_cost(num_rows, dimension, name)) for name in named
    ]
    if kind == "ivf":
        fitting = [plan for plan in lists if plan.memory_bytes <= max_memory_bytes]
        return (fitting or lists[-1:])[0]
    candidates = [flat, *lists]
    for plan in candidates:
        if plan.memory_bytes <= max_memory_bytes and plan.search_s * 1000 <= max_latency_ms:
            return plan
    least = min(candidates, key=lambda plan: (plan.memory_bytes > max_memory_bytes, plan.search_s))
    raise ConfigError(
        "no kind of index meets the bounds",
        got=f"{num_rows:,} rows of {dimension}: {least.kind} {least.quantizer} takes {least.memory_bytes:,} bytes and "
        f"{least.search_s * 1000:.0f} ms a query",
        expected=f"index.max_memory_bytes={max_memory_bytes:,} and index.max_latency_ms={max_latency_ms:g}",
        remedy="raise the bound, or name a kind: --set index.kind=ivf --set index.quantizer=pq",
    )


def list_count(num_rows: int) -> int:
    """Lists of a gallery: about twice the square root of its rows, a power of two.

    >>> [list_count(n) for n in (10_000, 100_000, 10**6, 10**7)]
    [256, 512, 2048, 8192]
    """
    return 2 ** max(0, round(math.log2(2 * math.sqrt(max(1, num_rows)))))


def _flat_cost(num_rows: int, dimension: int) -> tuple[int, float]:
    size = 4 * num_rows * dimension
    return size, size / READ_BYTES_PER_S + _FIXED_S


def _ivf_cost(num_rows: int, dimension: int, quantizer: str) -> tuple[int, float]:
    centroids = 4 * list_count(num_rows) * dimension
    codes = num_rows * code_bytes(quantizer, dimension)
    scan_s = READ_SHARE * codes / SCAN_BYTES_PER_S[quantizer]
    # Each row's number is in its list too.
    return codes + 8 * num_rows + centroids, centroids / READ_BYTES_PER_S + scan_s + _FIXED_S
