"""Embedding when decoding is the work (encoder `tiny`): against bare decoding, and the plain Ray Data pipeline.

value = images/s of `zscmr embed` from raw shards over the plain pipeline's, the better of its two forms (bar 3); also at
least 0.9 of bare decoding in two processes, which reads the same tars and does nothing but decode. Web-size JPEGs, no
thumbnails; the rate with thumbnails stands in detail beside a bare loop that makes them too.

clip-retrieval's inference loop is not measured: see `CLIP_RETRIEVAL`.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from contract import report
from corpus import pictures, write_folder, write_shards
from embed_rates import (
    bare_decoding,
    embed_config,
    in_turns,
    run_anew,
    run_bare,
    run_plain,
    timed,
    write_untrained,
)

from zscmr_ray.cli.session import ray_session

NUM_SHARDS, ROWS_PER_SHARD, PLAIN_ROWS, ROUNDS = 32, 384, 2048, 5
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
        halves = [tars[::2], tars[1::2]]

        def bare(thumbnail_px: int | None = None) -> float:
            return run_bare(bare_decoding, halves, num_rows=num_rows, thumbnail_px=thumbnail_px)

        decodings, runs, beside = in_turns(
            bare, lambda: run_anew(configs[False], num_rows=num_rows), rounds=ROUNDS
        )
        ours_thumbnails, _ = timed("ours with thumbnails", lambda: run_anew(configs[True], num_rows=num_rows))
        decoding_thumbnails = timed("bare decoding with thumbnails", lambda: bare(256))
        with ray_session(configs[False].ray):
            plain = timed("plain Ray", lambda: run_plain(folder, model=folder / "model", num_rows=PLAIN_ROWS))
    ours, decoding = statistics.median(rate for rate, _ in runs), statistics.median(decodings)
    shares = [rate / near for (rate, _), near in zip(runs, beside, strict=True)]
    over_plain, of_bare = ours / max(plain.values()), statistics.median(shares)
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
            "ours_whole_s_with_start": round(statistics.median(whole_s for _, whole_s in runs), 1),
            "bare_decoding_images_per_s": round(decoding, 1),
            "of_bare_decoding": round(of_bare, 3),
            "of_bare_decoding_by_round": [round(share, 3) for share in shares],
            "bar_of_bare_decoding": BAR_BARE,
            "plain_ray_images_per_s": {form: round(rate, 1) for form, rate in plain.items()},
            "plain_ray_images": PLAIN_ROWS,
            "with_thumbnails": {
                "ours_images_per_s": round(ours_thumbnails, 1),
                "bare_images_per_s": round(decoding_thumbnails, 1),
                "of_bare": round(ours_thumbnails / decoding_thumbnails, 3),
            },
            "clip_retrieval": CLIP_RETRIEVAL,
        },
    )


if __name__ == "__main__":
    main()
