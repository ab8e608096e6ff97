"""Small WebDataset corpora of drawn JPEGs, with bad rows on demand, and the configuration that reads them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zscmr_ray.config import Config
from zscmr_ray.recipes import vary

GRID, MAX_TOKENS = 2, 16


def jpeg(seed: int, *, width: int = 48, height: int = 40) -> bytes:
    """A small picture that compresses like one."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_tar(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> None:
    """Write samples as adjacent members `key.extension`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def good_samples(seed: int, num_rows: int) -> list[tuple[str, dict[str, bytes]]]:
    """Rows of a picture and one to three captions; the class is named in the first."""
    rows = []
    for row in range(num_rows):
        captions = [f"a picture of kind {'abc'[row % 3]} number {row}", "two words", "three more words"]
        text = "\n".join(captions[: 1 + row % 3])
        label = f"kind {'abc'[row % 3]}"
        rows.append(
            (f"{row:04d}", {"jpg": jpeg(1000 * seed + row), "txt": text.encode(), "cls": label.encode()})
        )
    return rows


def bad_samples() -> list[tuple[str, dict[str, bytes]]]:
    """One row for each way of being useless."""
    whole = jpeg(1, width=200, height=200)
    return [
        ("zero", {"jpg": b"", "txt": b"a caption"}),
        ("cut", {"jpg": whole[: len(whole) // 2], "txt": b"a caption"}),
        ("html", {"jpg": b"<!DOCTYPE html><html>404</html>", "txt": b"a caption"}),
        ("silent", {"jpg": whole, "txt": b" \n "}),
        ("huge", {"jpg": jpeg(2, width=400, height=300), "txt": b"a caption"}),
    ]


def corpus_config(root: Path, name: str = "run", **sections: dict[str, Any]) -> Config:
    """Tiny backbones over `root/shards`, chunks of 16 rows, into `root/<name>`."""
    base: dict[str, dict[str, Any]] = {
        "data": {"input_uri": str(root / "shards"), "run_uri": str(root / name), "max_pixels": 100_000},
        "preprocess": {
            "image_backbone": "tiny",
            "text_backbone": "tiny",
            "region_grid": GRID,
            "max_tokens": MAX_TOKENS,
            "chunk_rows": 16,
        },
        "embed": {"chunk_rows": 16},
    }
    for section, values in sections.items():
        base[section] = base.get(section, {}) | values
    return vary(Config(), recipe="fgan", **base)
