"""The report of one evaluation as files: numbers as JSON, and one self-contained HTML page made from them.

    report.json     every number (tables.py reads it; the README's table comes from it)
    examples.json   example queries with their hits, heat maps, small pictures (base64 JPEG)
    served.json     optional: queries asked of the running service, added after the evaluation
    report.html     rendered from the three; no script, no link to anywhere, all text escaped

What it is not: a computation. Rendering again changes no number. `stages/evaluate.py` writes the first two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from zscmr_ray.stages.report import charts, tables
from zscmr_ray.stages.report.pictures import encode_picture, shrink_picture
from zscmr_ray.storage import Store

REPORT = "report.json"
EXAMPLES = "examples.json"
SERVED = "served.json"
PAGE = "report.html"
MAX_SERVED_RESULTS = 12


def render_report(store: Store) -> str:
    """Write report.html from the JSON files beside it and return its URI; DataError if report.json is missing."""
    served = store.read_json(SERVED) if store.exists(SERVED) else []
    page = render_page(store.read_json(REPORT), store.read_json(EXAMPLES), served=served)
    store.write_bytes(PAGE, page.encode())
    return f"{store.uri}/{PAGE}"


def add_served_queries(store: Store, queries: Sequence[Mapping[str, Any]]) -> str:
    """Put queries asked of the service into the report, in the place of earlier ones; returns the page's URI.

    A query is {"query": str | None, "query_image": JPEG bytes | None, "results": [{"id", "score", "caption",
    "labels", "thumbnail_jpeg": bytes | None}]}; `expected_labels` (optional) frames hits right or wrong. Pictures are
    re-encoded small; at most 12 results of each are shown.
    """
    kept = [
        {
            "query": query.get("query"),
            "picture": _small(query.get("query_image")),
            "expected_labels": list(query.get("expected_labels") or []),
            "results": [
                {
                    "id": str(result["id"]),
                    "score": float(result["score"]),
                    "caption": result.get("caption"),
                    "labels": list(result.get("labels") or []),
                    "picture": _small(result.get("thumbnail_jpeg")),
                }
                for result in query["results"][:MAX_SERVED_RESULTS]
            ],
        }
        for query in queries
    ]
    store.write_json(SERVED, kept)
    return render_report(store)


def render_page(
    report: Mapping[str, Any], examples: Mapping[str, Any], *, served: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return the HTML page of a report; a pure function of the three documents."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__, ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = tables.number
    environment.filters["span"] = tables.span
    return environment.get_template("report.html").render(
        report=report,
        examples=examples,
        served=served,
        headline=tables.headline(report),
        class_tables=tables.class_tables(report),
        instance_tables=tables.instance_tables(report),
        curves=charts.precision_recall_panels(report),
        bars=charts.class_bars(report),
    )


def plain_values(value: Any) -> Any:
    """Return the value with NaN as None and tuples as lists, as JSON can hold it.

    >>> plain_values({"map": float("nan"), "interval": (0.0, 1.0)})
    {'map': None, 'interval': [0.0, 1.0]}
    """
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item) for item in value]
    return value


def _small(jpeg: bytes | None) -> str | None:
    return encode_picture(shrink_picture(jpeg)) if jpeg else None
