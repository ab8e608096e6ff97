"""`zscmr demo`: the whole chain on the emoji corpus, then questions over HTTP, their answers in the report.

Everything here is what a user would type: the pipeline's stages, the service, the client.
"""

from __future__ import annotations

import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from zscmr_ray.cli.demo_corpus import build_corpus
from zscmr_ray.cli.directories import verify
from zscmr_ray.cli.query import print_results
from zscmr_ray.cli.session import ray_session
from zscmr_ray.cli.stages import PIPELINE, run_stages
from zscmr_ray.client import Client, SearchResponse
from zscmr_ray.config.load import load_config
from zscmr_ray.errors import DataError
from zscmr_ray.stages import stage_store

TEXT_QUERIES = (
    "a cat that laughs with tears of joy",
    "red fruit",
    "a fast vehicle on rails",
    "a bird that cannot fly",
    "something to drink on a cold morning",
    "a building where you worship",
    "an instrument with strings",
    "a sad face crying",
    "winter sport on snow",
    "a flower in bloom",
)
IMAGE_QUERIES = ("1f98b", "1f355")  # butterfly, pizza
# Eight steps an epoch here, against dozens on corpora of thousands: twice the default passes.
TRAINING = ("optim.max_epochs=12",)
NUM_RESULTS = 8
NUM_PRINTED = 3


def run_demo(*, run: str, cache: Path, overrides: Sequence[str]) -> None:
    """Build the corpus, run every stage that is not done, ask the service, verify it all, and say where the report is."""
    from zscmr_ray.serving.front import free_ports, http_front

    started_s = time.monotonic()
    shards = build_corpus(cache)
    port = f"serve.port={free_ports(1)[0]}"
    settings = [f"data.input_uri={shards}", f"data.run_uri={run}", port, *TRAINING, *overrides]
    config = load_config(overrides=settings).config
    with http_front(config.ray), ray_session(config.ray):
        results = {result.stage: result for result in run_stages(config, PIPELINE)}
        from zscmr_ray.serving.app import running

        with running(config) as url, Client(url) as client:
            client.ready(wait_s=30)
            typer.echo(f"serve: answering at {url}")
            answers = _ask(client, shards)
    from zscmr_ray.stages.report import add_served_queries

    page = add_served_queries(stage_store(config, "evaluate"), answers)
    typer.echo("\nverify:")
    verify(run)
    typer.echo(f"\n{results['evaluate'].info['summary']}")
    typer.echo(f"\nreport: {page}\ndemo: done in {time.monotonic() - started_s:.0f} s")


def _ask(client: Client, shards: Path) -> list[dict[str, Any]]:
    """Ask ten text and two image queries; print the first hits and keep all for the report."""
    asked = [_entry(client, client.search(text=text, k=NUM_RESULTS), text=text) for text in TEXT_QUERIES]
    for key in IMAGE_QUERIES:
        picture = _picture(shards, key)
        asked.append(
            _entry(client, client.search(image=picture, k=NUM_RESULTS), image=picture, text=f"picture {key}")
        )
    return asked


def _entry(
    client: Client, response: SearchResponse, *, text: str, image: bytes | None = None
) -> dict[str, Any]:
    print_results(text, response, limit=NUM_PRINTED)
    hits = [
        {
            "id": hit.id,
            "score": hit.score,
            "caption": hit.caption,
            "labels": list(hit.labels),
            "thumbnail_jpeg": client.thumbnail(hit.id) if hit.thumbnail_url else None,
        }
        for hit in response.results
    ]
    return {"query": text, "query_image": image, "results": hits}


def _picture(shards: Path, key: str) -> bytes:
    """One picture of the corpus by its key, the packaged webp itself."""
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as archive:
            if f"{key}.webp" in archive.getnames():
                file = archive.extractfile(f"{key}.webp")
                assert file is not None, "a tar member with a name and no content"
                return file.read()
    raise DataError(
        "the demo corpus lacks a picture", got=key, remedy=f"delete {shards.parent} to make it anew"
    )
