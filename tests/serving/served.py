"""A small run that can really be served: tiny backbones, a checkpoint, and an index of its own encoder's vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.embeddings_run import COLOURS, jpeg, write_embeddings
from tests.stages.small_run import small_config, write_checkpoint
from zscmr_ray.config import Config
from zscmr_ray.engine.vector_model import find_model
from zscmr_ray.recipes import vary
from zscmr_ray.serving.encoder import ModelEncoder
from zscmr_ray.serving.front import free_ports
from zscmr_ray.stages import stage_store
from zscmr_ray.stages.index import run_index

NUM_ITEMS = 6


def make_served_run(folder: Path | str, *, num_items: int = NUM_ITEMS, **serve: Any) -> Config:
    """Write the run to a folder or URI; `serve` = settings of the service."""
    config = vary(small_config(str(folder)), recipe="fgan", serve={"port": free_ports(1)[0], **serve})
    meta = write_checkpoint(config)
    encoder = ModelEncoder(find_model("checkpoint", own=stage_store(config, "train")), max_pixels=1_000_000)
    pictures = [encoder.decode(jpeg(COLOURS[n % 3])) for n in range(num_items)]
    captions = [f"caption {c} of item {n}" for n in range(num_items) for c in range(2)]
    write_embeddings(
        config,
        num_items=num_items,
        fingerprints=(meta.fingerprint, meta.fingerprint),
        blocks=[block.model_dump() for block in meta.blocks],
        vectors={
            "image": encoder.encode_images(pictures).astype(np.float16),
            "text": encoder.encode_texts(captions).astype(np.float16),
        },
    )
    run_index(config)
    return config


def listens_on(process: psutil.Process) -> set[tuple[str, int]]:
    """The addresses and ports at which a process takes connections."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
