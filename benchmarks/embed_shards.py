"""What a shard costs that has almost nothing in it: one row alone from command to manifest, and each of 10,000.

Encoder `tiny`, one small JPEG a shard, local disk. value = the smaller of 18 s over the first and 20 ms over the second
(bar 1); a shard of 10,000 is their whole command less the one of one row. Beside it a bare loop in one process that
reads the same shards, encodes each and writes a parquet file, without a commit or a check.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from contract import report
from corpus import write_shards
from embed_rates import embed_config, timed, write_untrained
from PIL import Image

from zscmr_ray.config import Config
from zscmr_ray.manifest import MANIFEST

NUM_SHARDS, NUM_BARE = 10_000, 1_000
BAR_ONE_S, BAR_EACH_MS = 18.0, 20.0


def main() -> None:
    num_shards = int(sys.argv[1]) if len(sys.argv) > 1 else NUM_SHARDS
    with tempfile.TemporaryDirectory(prefix="zscmr-bench-") as name:
        folder = Path(name)
        write_untrained(folder / "model", "tiny", width=16)
        for count in (1, num_shards):
            (folder / str(count)).mkdir()
            write_shards(folder / str(count) / "shards", [_picture()], num_shards=count, rows_per_shard=1)
        one_s = timed("one row", lambda: run_command(folder / "1", model=folder / "model"))
        many_s = timed(
            f"{num_shards} rows", lambda: run_command(folder / str(num_shards), model=folder / "model")
        )
        config = embed_config(folder / str(num_shards), model=folder / "model")
        bare_ms = timed(
            "bare", lambda: run_bare_loop(config, folder / "bare", count=min(NUM_BARE, num_shards))
        )
    each_ms = (many_s - one_s) / (num_shards - 1) * 1e3
    value = min(BAR_ONE_S / one_s, BAR_EACH_MS / each_ms)
    report(
        name="embed_shards",
        value=value,
        bar=1.0,
        holds=value >= 1.0,
        unit="of the time allowed, the smaller of both shares",
        detail={
            "one_row_s": round(one_s, 2),
            "bar_one_row_s": BAR_ONE_S,
            "shards": num_shards,
            "all_shards_s": round(many_s, 1),
            "each_shard_ms": round(each_ms, 2),
            "bar_each_shard_ms": BAR_EACH_MS,
            "bare_each_shard_ms": round(bare_ms, 2),
        },
    )


def run_command(folder: Path, *, model: Path) -> float:
    """Seconds of `zscmr embed` over `folder/shards`, from the command to its end (the manifest is there then)."""
    command = [
        str(Path(sys.executable).with_name("zscmr")), "embed", "--input", str(folder / "shards"),
        "--run", str(folder / "run"), "--model", str(model), "--set", "data.modality=image",
        "--set", "embed.source=shards", "--set", "embed.thumbnails=false",
    ]  # fmt: skip
    started_s = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ended_s = time.monotonic()
    assert (folder / "run" / "embeddings" / MANIFEST).exists()
    return ended_s - started_s


def run_bare_loop(config: Config, output: Path, *, count: int) -> float:
    """Milliseconds a shard of one process that reads, encodes and writes, after the model is loaded."""
    from zscmr_ray.stages.embed.plan import plan_embed
    from zscmr_ray.stages.embed.run import embed_job

    output.mkdir()
    job = embed_job(config, plan_embed(config))
    encoder = job.build_encoder()
    started_s = time.monotonic()
    for shard in job.shards[:count]:
        for chunk in job.source.read(shard):
            for side, rows in encoder.encode(chunk.table).outputs.items():
                pq.write_table(rows, output / f"{side}-{shard.part}", compression="zstd")
    return (time.monotonic() - started_s) / count * 1e3


def _picture() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
