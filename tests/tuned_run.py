"""Pairs with kept images whose class is a colour, made by a real preprocess in this process, for training encoders."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.stages.corpus import corpus_config, write_tar
from zscmr_ray.config import Config
from zscmr_ray.stages.preprocess import run_preprocess
from zscmr_ray.storage import Store

CLASSES = ("amber", "blue", "coral", "denim", "ebony", "fawn", "green", "hazel")
ROWS_PER_CLASS = 15


def tuned_config(root: Path, name: str = "run", **sections: dict[str, Any]) -> Config:
    """A small FGAN over the tiny backbones with the last image and text block trained; later sections win."""
    base: dict[str, dict[str, Any]] = {
        "preprocess": {"keep_images": True},
        "model": {
            "width": 16,
            "latent": 8,
            "num_heads": 2,
            "num_noise_samples": 8,
            "ratio": 0.5,
            "image_blocks": 1,
            "text_blocks": 1,
        },
        "optim": {"max_epochs": 3, "lr": 1e-3, "encoder_lr": 1e-3, "warmup_steps": 2},
        "train": {"global_batch_size": 4, "threads_per_worker": 1, "checkpoint_every_steps": 4},
        "evaluate": {"bootstrap_resamples": 100, "num_gallery_queries": 2},
    }
    for section, values in sections.items():
        base[section] = base.get(section, {}) | values
    return corpus_config(root, name, **base)


def write_corpus(root: Path) -> None:
    """Write one shard of small PNGs: noise around the class's own colour."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(len(CLASSES) * ROWS_PER_CLASS):
        label = CLASSES[number % len(CLASSES)]
        colour = np.random.default_rng(number % len(CLASSES)).integers(0, 256, 3)
        noise = rng.integers(-40, 40, (36, 48, 3))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(buffer, "PNG")
        members = {"png": buffer.getvalue(), "txt": f"{label} thing {number}".encode(), "cls": label.encode()}
        samples.append((f"{number:04d}", members))
    write_tar(root / "shards" / "a.tar", samples)


def write_pairs(root: Path, **sections: dict[str, Any]) -> Config:
    """Make the corpus and its pairs; the plane must run in this process (`inline_plane`) or a Ray be there."""
    write_corpus(root)
    config = tuned_config(root, **sections)
    run_preprocess(config)
    return config


def weights_of(folder: str) -> bytes:
    """The bytes of a checkpoint's weights."""
    return Store(folder).child("checkpoint").read_bytes("model.safetensors")
