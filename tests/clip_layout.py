"""Directories in the clip-retrieval layout for tests: our own export, and what another program leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.embeddings_run import run_config, write_embeddings
from zscmr_ray.stages.convert import export_clip_retrieval
from zscmr_ray.storage import Store


def exported(tmp_path: Path, **options: Any) -> tuple[Store, Path]:
    """A run's embeddings and their export."""
    write_embeddings(run_config(tmp_path), **options)
    source, target = Store(tmp_path / "embeddings"), tmp_path / "clip"
    export_clip_retrieval(source, Store(target))
    return source, target


def write_foreign(folder: Path, numbered: list[tuple[Any, Any]], **columns: list[Any]) -> None:
    """What another program's inference leaves: vectors, and paths and captions in metadata."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, (images, texts) in enumerate(numbered):
        np.save(folder / f"img_emb/img_emb_{number}.npy", images)
        np.save(folder / f"text_emb/text_emb_{number}.npy", texts)
        table = {
            "image_path": [f"{n:05d}" for n in range(len(images))],
            "caption": [f"caption {n}" for n in range(len(images))],
        }
        pq.write_table(pa.table(table | columns), folder / f"metadata/metadata_{number}.parquet")


def rows_of(store: Store, folder: str) -> list[dict[str, Any]]:
    """All rows below one folder of a directory, by part."""
    files = sorted((Path(store.uri) / folder).glob("*.parquet"))
    return [row for path in files for row in pq.read_table(path).to_pylist()]
