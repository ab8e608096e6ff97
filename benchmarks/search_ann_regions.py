"""Regions of real pictures for `search_ann`: EfficientNet-Lite0's 7 x 7 feature maps in files of 512 pictures.

Pictures: Flickr8k (with captions) and fashion products of the shared data. One process a source, one thread each; a
file that is there is not made again.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from zscmr_ray.data.captions import clean_captions
from zscmr_ray.data.decode import decode_image
from zscmr_ray.models.backbones import load_image_backbone

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
REGIONS = ROOT / ".cache" / "search_ann" / "regions"
# 8,091 of Flickr8k and these: 21,591 pictures, of which 49 regions each are 1,057,959 rows before repeats are dropped.
NUM_FASHION = 13_500
CHUNK, PASS_ROWS, GRID = 512, 16, 7

Picture = tuple[str, bytes, list[str]]


def encode_all() -> None:
    """Encode both sources, a process each."""
    workers = [
        multiprocessing.get_context("spawn").Process(target=encode_source, args=(name,)) for name in SOURCES
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("encoding failed")


def flickr8k() -> Iterator[Picture]:
    """Key with its split, picture, captions."""
    for path in sorted((SHARED / "flickr8k").glob("*.tar")):
        split = path.name.partition("-")[0]
        rows: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.rpartition(".")
                file = tar.extractfile(member)
                if file is not None and extension in {"jpg", "txt"}:
                    rows.setdefault(key, {})[extension] = file.read()
        for key, row in rows.items():
            captions = [line for line in row["txt"].decode().splitlines() if line.strip()]
            yield f"{split}/{key}", row["jpg"], list(clean_captions(captions))


def fashion() -> Iterator[Picture]:
    """Key and picture; no captions are used."""
    done = 0
    for path in sorted((SHARED / "fashion").glob("*.parquet")):
        for row in pq.read_table(path, columns=["id", "image"]).to_pylist():
            if done < NUM_FASHION:
                yield f"fashion/{row['id']}", row["image"], []
                done += 1


SOURCES = {"flickr8k": flickr8k, "fashion": fashion}


def encode_source(name: str) -> None:
    """Write the regions of a source in files of CHUNK pictures, those that are not there yet."""
    torch.set_num_threads(1)
    backbone = load_image_backbone("efficientnet-lite0")
    spec = backbone.spec
    folder = REGIONS
    folder.mkdir(parents=True, exist_ok=True)
    for number, pictures in enumerate(chunks(SOURCES[name]())):
        path = folder / f"{name}-{number:03d}.npy"
        if path.exists():
            continue
        made = []
        for start in range(0, len(pictures), PASS_ROWS):
            pixels = [
                decode_image(
                    data,
                    size_px=spec.size_px,
                    crop_fraction=spec.crop_fraction,
                    interpolation=spec.interpolation,
                    max_pixels=1 << 26,
                    thumbnail_px=None,
                ).pixels_HW3
                for _, data, _ in pictures[start : start + PASS_ROWS]
            ]
            with torch.inference_mode():
                made.append(
                    backbone(torch.from_numpy(np.stack(pixels)), region_grid=GRID).regions_BRD.half().numpy()
                )
        path.with_suffix(".json").write_text(json.dumps([[key, captions] for key, _, captions in pictures]))
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.save(file, np.concatenate(made))
        temporary.rename(path)
        print(f"{path.name}", file=sys.stderr, flush=True)


def chunks(pictures: Iterator[Picture]) -> Iterator[list[Picture]]:
    """Lists of CHUNK pictures."""
    held: list[Picture] = []
    for picture in pictures:
        held.append(picture)
        if len(held) == CHUNK:
            yield held
            held = []
    if held:
        yield held


def region_files() -> list[tuple[Path, list[tuple[str, list[str]]]]]:
    """Every file of regions with the key and captions of its pictures."""
    paths = sorted((REGIONS).glob("*.npy"))
    return [
        (path, [(key, texts) for key, texts in json.loads(path.with_suffix(".json").read_text())])
        for path in paths
    ]
