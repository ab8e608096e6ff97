"""Embedding when encoding is the work (EfficientNet-Lite0): against bare processes, and the plain Ray Data pipeline.

value = images/s of `zscmr embed` from raw shards over the better of two bare loops on the same cores (bar 0.9): one
process with two torch threads, two with one each; both decode ahead in a thread, encode, and write nothing. Also at
least 1.15 times the plain pipeline with the same encoder. Encoding alone, of pictures that are decoded already, stands
in detail: no pipeline that decodes on the same cores reaches it.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from contract import report
from corpus import pictures, write_folder, write_shards
from embed_rates import (
    ENCODED_CHUNKS,
    bare_embedding,
    bare_encoding,
    embed_config,
    run_bare,
    run_plain,
    timed,
    write_untrained,
)
from turns import rates_in_turns

from zscmr_ray.cli.session import ray_session

NUM_SHARDS, ROWS_PER_SHARD, PLAIN_ROWS, ROUNDS = 10, 256, 1536, 3
BAR_BARE, BAR_PLAIN = 0.9, 1.15
HEAD_WIDTH = 512


def main() -> None:
    num_rows = NUM_SHARDS * ROWS_PER_SHARD
    with tempfile.TemporaryDirectory(prefix="zscmr-bench-") as name:
        folder = Path(name)
        photos, kind = pictures()
        write_shards(folder / "shards", photos, num_shards=NUM_SHARDS, rows_per_shard=ROWS_PER_SHARD)
        write_folder(folder / "images", photos, num_files=PLAIN_ROWS)
        write_untrained(folder / "model", "efficientnet-lite0", width=HEAD_WIDTH)
        config = embed_config(folder, model=folder / "model")
        tars = sorted((folder / "shards").iterdir())
        halves = [tars[::2], tars[1::2]]
        # In turns of the same minutes, as often as they come to while ours runs (`turns.py`).
        bare = {
            "1_process_x_2_threads": (bare_embedding, [tars * 4], {"config": config, "threads": 2}),
            "2_processes_x_1_thread": (
                bare_embedding,
                [half * 4 for half in halves],
                {"config": config, "threads": 1},
            ),
        }
        runs = [
            timed("in turns", lambda: rates_in_turns(config, bare, num_rows=num_rows)) for _ in range(ROUNDS)
        ]
        with ray_session(config.ray):
            plain = timed("plain Ray", lambda: run_plain(folder, model=folder / "model", num_rows=PLAIN_ROWS))
        encoding = timed(
            "encoding alone",
            lambda: run_bare(
                bare_encoding, halves, num_rows=2 * ENCODED_CHUNKS * config.embed.chunk_rows, config=config
            ),
        )
    ours = statistics.median(run.ours for run in runs)
    # The better of the two ways to spend two cores, at the time of each run.
    shares = [run.ours / max(run.bare.values()) for run in runs]
    of_bare, over_plain = statistics.median(shares), ours / max(plain.values())
    report(
        name="embed_encode_bound",
        value=of_bare,
        bar=BAR_BARE,
        holds=of_bare >= BAR_BARE and over_plain >= BAR_PLAIN,
        unit="of the better bare loop's images/s",
        detail={
            "images": num_rows,
            "pictures": kind,
            "ours_images_per_s": round(ours, 1),
            "bare_images_per_s": {
                name: round(statistics.median(run.bare[name] for run in runs), 1) for name in bare
            },
            "of_bare_by_run": [round(share, 3) for share in shares],
            "encoding_alone_images_per_s": round(encoding, 1),
            "plain_ray_images_per_s": {form: round(rate, 1) for form, rate in plain.items()},
            "plain_ray_images": PLAIN_ROWS,
            "over_plain_ray": round(over_plain, 3),
            "bar_over_plain_ray": BAR_PLAIN,
        },
    )


if __name__ == "__main__":
    main()
