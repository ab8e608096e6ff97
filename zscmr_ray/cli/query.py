"""`zscmr query`: ask a running service, print a table, optionally write a gallery page."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path

import jinja2
from rich.console import Console
from rich.table import Table

from zscmr_ray.client import Client, SearchResponse
from zscmr_ray.errors import ConfigError


def run_query(
    *,
    text: str | None,
    image: Path | None,
    item_id: str | None,
    target: str,
    k: int,
    labels: Sequence[str],
    label_weight: float | None,
    html: Path | None,
    url: str,
    api_key_env: str,
) -> None:
    """Ask once and show the answer. Raises ConfigError unless exactly one of text, image and id is given."""
    given = [value for value in (text, image, item_id) if value is not None]
    if len(given) != 1:
        raise ConfigError(
            "one question at a time",
            got=f"{len(given)} of text, --image and --id",
            expected="exactly one",
            remedy='zscmr query "a smiling cat"',
        )
    if image is not None and not image.is_file():
        raise ConfigError("no such picture", got=image)
    with Client(url, api_key=os.environ.get(api_key_env) or None) as client:
        response = client.search(
            text=text,
            image=image,
            id=item_id,
            target=target,
            k=k,
            filter={"labels": list(labels)} if labels else None,
            label_weight=label_weight,
        )
        print_results(str(given[0]), response)
        if html is not None:
            html.write_text(gallery_html(client, [(str(given[0]), response)]), encoding="utf-8")
            Console().print(f"gallery: {html}")


def print_results(question: str, response: SearchResponse, *, limit: int | None = None) -> None:
    """Print one answer, or its first `limit` results, as a table."""
    table = Table("rank", "score", "caption", "class", "id", title=question, title_justify="left")
    for hit in response.results[:limit]:
        table.add_row(str(hit.rank), f"{hit.score:.3f}", hit.caption or "", ", ".join(hit.labels), hit.id)
    Console().print(table)


def gallery_html(client: Client, answers: Sequence[tuple[str, SearchResponse]]) -> str:
    """A self-contained page with the pictures of each answer."""
    loader = jinja2.PackageLoader("zscmr_ray.cli", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    sections = []
    for question, response in answers:
        hits = [
            {"hit": hit, "picture": _picture(client, hit.id) if hit.thumbnail_url else None}
            for hit in response.results
        ]
        sections.append({"question": question, "hits": hits})
    return environment.get_template("gallery.html").render(sections=sections)


def _picture(client: Client, item_id: str) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(client.thumbnail(item_id)).decode()
