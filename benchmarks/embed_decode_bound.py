"""Embedding when decoding is the work (encoder `tiny`): against bare decoding, and the plain Ray Data pipeline.

value = images/s of `zscmr embed` from raw shards over the plain pipeline's, the better of its two forms (bar 3); also at
least 0.9 of bare decoding in two processes, which reads the same tars and does nothing but decode, in turns with it
(`turns.py`). Bare decoding is our own decoder's, which is faster than Pillow's; a loop by Pillow, the crop alone resized, has
turns too and stands in detail. Web-size JPEGs, no thumbnails; with thumbnails beside a bare loop that makes them too.

clip-retrieval's inference loop is not measured: see `CLIP_RETRIEVAL`.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from contract import report
from corpus import pictures, write_folder, write_shards
from embed_rates import (
    bare_decoding,
    decode_as_we_do,
    decode_by_pillow,
    embed_config,
    run_plain,
    timed,
    write_untrained,
)
from turns import Rates, rates_in_turns

from zscmr_ray.cli.session import ray_session

# Of half as many shards the ends were 3% of the whole: a shard begun by one worker before the first 20% are there, and the
# other's last one.
NUM_SHARDS, ROWS_PER_SHARD, PLAIN_ROWS, ROUNDS = 64, 384, 2048, 3
BAR_PLAIN, BAR_BARE = 3.0, 0.9
CLIP_RETRIEVAL = (
    "not measured: clip-retrieval 2.45.0 asks for numpy<2, pyarrow<16, pandas<3 and webdataset<0.3, which exclude this "
    "environment's. In one of its own it installs beside torch 2.13.0+cpu and setuptools<81, but does not import: the "
    "torchvision it gets is built for CUDA (0.28.0+cu130: operator torchvision::nms does not exist); torch with CUDA, "
    "several GB, was not tried"
)


def main() -> None:
    num_rows = NUM_SHARDS * ROWS_PER_SHARD
    with tempfile.TemporaryDirectory(prefix="zscmr-bench-") as name:
        folder = Path(name)
        photos, kind = pictures()
        write_shards(folder / "shards", photos, num_shards=NUM_SHARDS, rows_per_shard=ROWS_PER_SHARD)
        write_folder(folder / "images", photos, num_files=PLAIN_ROWS)
        write_untrained(folder / "model", "tiny", width=16)
        configs = {
            thumbnails: embed_config(folder, model=folder / "model", thumbnails=thumbnails)
            for thumbnails in (False, True)
        }
        tars = sorted((folder / "shards").iterdir())
        # Each half often enough: bare decoding goes on as long as our run lasts.
        halves = [tars[::2] * 4, tars[1::2] * 4]

        def beside_bare(*, thumbnails: bool, **loops: Callable[[bytes], Any]) -> Rates:
            bare = {name: (bare_decoding, halves, {"decode": decode}) for name, decode in loops.items()}
            rates: Rates = timed(
                "with thumbnails" if thumbnails else "without thumbnails",
                lambda: rates_in_turns(configs[thumbnails], bare, num_rows=num_rows),
            )
            return rates

        rounds = [
            beside_bare(thumbnails=False, pillow=decode_by_pillow, own=decode_as_we_do) for _ in range(ROUNDS)
        ]
        with_thumbnails = beside_bare(thumbnails=True, own=partial(decode_as_we_do, thumbnail_px=256))
        with ray_session(configs[False].ray):
            plain = timed("plain Ray", lambda: run_plain(folder, model=folder / "model", num_rows=PLAIN_ROWS))
    shares = {name: [rates.ours / rates.bare[name] for rates in rounds] for name in ("pillow", "own")}
    ours = statistics.median(rates.ours for rates in rounds)
    over_plain, of_bare = ours / max(plain.values()), statistics.median(shares["own"])
    report(
        name="embed_decode_bound",
        value=over_plain,
        bar=BAR_PLAIN,
        holds=over_plain >= BAR_PLAIN and of_bare >= BAR_BARE,
        unit="times the plain Ray Data pipeline's images/s",
        detail={
            "images": num_rows,
            "pictures": kind,
            "ours_images_per_s": round(ours, 1),
            "bare_decoding_images_per_s": {
                name: round(statistics.median(rates.bare[name] for rates in rounds), 1) for name in shares
            },
            "of_bare_decoding": {name: round(statistics.median(found), 3) for name, found in shares.items()},
            "of_bare_decoding_by_run": {
                name: [round(share, 3) for share in found] for name, found in shares.items()
            },
            "turns_by_run": [rates.num_turns for rates in rounds],
            "bar_of_bare_decoding": BAR_BARE,
            "plain_ray_images_per_s": {form: round(rate, 1) for form, rate in plain.items()},
            "plain_ray_images": PLAIN_ROWS,
            "with_thumbnails": {
                "ours_images_per_s": round(with_thumbnails.ours, 1),
                "bare_images_per_s": round(with_thumbnails.bare["own"], 1),
                "of_bare": round(with_thumbnails.ours / with_thumbnails.bare["own"], 3),
            },
            "clip_retrieval": CLIP_RETRIEVAL,
        },
    )


if __name__ == "__main__":
    main()
