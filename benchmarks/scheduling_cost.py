"""What scheduling costs: shards with nothing in them through the embed machinery, on 4 nodes of 8 logical CPUs.

1,000, 10,000 and 100,000 shards of one row, each size from claim to manifest: lease, tasks, encoder actors, staging, commits,
one parquet file a shard, and all of Ray's own part. value = 1.3 x (time a shard at 10,000) / (time a shard at 100,000), bar
1: does a shard cost more the more there are. A size's time is its whole run less the one of a single shard; the driver's
peak memory must stay within 1.5 GB. Each size has a driver process of its own, on one cluster; other sizes as arguments.

Parts are written to memory (/dev/shm) where there is one: a disk's journal slows down by itself when 300,000 files come
and go, which is no cost of scheduling (ZSCMR_BENCH_FOLDER=/tmp measures it with it).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from contract import report

from zscmr_ray.cli.session import prepare_environment
from zscmr_ray.config import PlaneSection
from zscmr_ray.machine import peak_rss_bytes
from zscmr_ray.manifest import StageKey
from zscmr_ray.schema import file_metadata, part_name
from zscmr_ray.stages.plane.chunks import DecodedChunk, EncodedChunk, Shard
from zscmr_ray.stages.plane.directory import run_directory
from zscmr_ray.stages.plane.run import PlaneJob
from zscmr_ray.storage import Store

SIZES = (1_000, 10_000, 100_000)
BAR_RATIO, BAR_DRIVER_GB = 1.3, 1.5
MEMORY = Path("/dev/shm")
FOLDER = os.environ.get("ZSCMR_BENCH_FOLDER") or (str(MEMORY) if MEMORY.is_dir() else None)
NUM_NODES, CPUS = 4, 8
# 32 logical CPUs would be 60 decode tasks at once, a process each; two cores have room for four.
PLANE = PlaneSection(decode_cpus=4.0, num_encoders=2)
ROW = pa.schema([("id", pa.string())], metadata=file_metadata({"by": "scheduling_cost"}))


class OneRow:
    """A `plane.chunks.Source` of shards that need no reading."""

    def read(self, shard: Shard) -> Iterator[DecodedChunk]:
        """One row, named as its shard."""
        yield DecodedChunk(pa.table({"id": [shard.key], "source_offset": [0]}), (), 1, 0, last=True)


class Nothing:
    """A `plane.chunks.Encoder` that does nothing."""

    def bring(self, table: pa.Table) -> None:
        """Nothing."""

    def encode(self, table: pa.Table, brought: None = None) -> EncodedChunk:
        """The row's id."""
        return EncodedChunk({"": pa.table({"id": table["id"]}, schema=ROW)})


def main() -> None:
    if sys.argv[1:2] == ["--drive"]:
        drive(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
        return
    sizes = tuple(int(word) for word in sys.argv[1:]) or SIZES
    few, many = sizes[-2:]
    prepare_environment()
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="zb", dir=FOLDER, ignore_cleanup_errors=True) as name:
        node = {"num_cpus": CPUS, "object_store_memory": 200_000_000}
        cluster = Cluster(initialize_head=True, head_node_args=node | {"temp_dir": name})
        try:
            for _ in range(NUM_NODES - 1):
                cluster.add_node(**node)
            found = {count: measure(cluster.address, count, Path(name)) for count in (1, *sizes)}
        finally:
            cluster.shutdown()
    each_ms = {count: (found[count]["s"] - found[1]["s"]) / count * 1e3 for count in sizes}
    ratio = each_ms[many] / each_ms[few]
    driver_gb = found[many]["driver_gb"]
    curve = {
        f"{count}": {"s": round(run["s"], 1), "driver_gb": round(run["driver_gb"], 2)}
        | ({"each_ms": round(each_ms[count], 2)} if count > 1 else {})
        for count, run in found.items()
    }
    report(
        name="scheduling_cost" if sizes == SIZES else f"scheduling_cost_{many}",
        value=BAR_RATIO / ratio,
        bar=1.0,
        holds=ratio <= BAR_RATIO and driver_gb <= BAR_DRIVER_GB,
        unit=f"of the growth allowed in time a shard from {few} to {many} shards",
        detail={"ratio": round(ratio, 3), "bar_ratio": BAR_RATIO, "bar_driver_gb": BAR_DRIVER_GB}
        | {"folder": FOLDER, "nodes": NUM_NODES, "logical_cpus_each": CPUS, "shards": curve},
    )


def measure(address: str, count: int, folder: Path) -> dict[str, float]:
    """Run so many shards with a driver process of their own: `s` from claim to manifest, `driver_gb` at its peak."""
    command = [sys.executable, __file__, "--drive", address, str(count), str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{count} shards: {found}", file=sys.stderr, flush=True)
    return found


def drive(address: str, count: int, folder: Path) -> None:
    """The driver."""
    import ray

    ray.init(address, logging_level="warning", log_to_driver=False)
    store = Store(folder / f"shards-{count}")
    keys = [f"{number:06}.tar" for number in range(count)]
    shards = [Shard(part_name(key), key, 100, num_rows=1) for key in keys]
    job = PlaneJob("embed", store, shards, OneRow(), Nothing, PLANE)
    key = StageKey(stage="embed", config={}, input_fingerprint=str(count))
    started_s = time.monotonic()
    manifest, _ = run_directory(store, key, lambda: job, info={})
    elapsed_s = time.monotonic() - started_s
    assert manifest.counts["out"] == len(manifest.parts) == count
    print(json.dumps({"s": elapsed_s, "driver_gb": peak_rss_bytes() / 1e9}))


if __name__ == "__main__":
    main()
