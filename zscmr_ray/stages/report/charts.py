"""Geometry of the report's charts: precision-recall lines and per-class bars, drawn by the template as inline SVG.

What it is: data coordinates to picture coordinates. What it is not: a plotting library: inline SVG follows the page's
light or dark colours, needs no font, and costs no import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zscmr_ray.retrieval.metrics import RECALL_LEVELS
from zscmr_ray.stages.report.tables import DIRECTIONS, main_method

WIDTH, HEIGHT = 420, 300
NUM_COLOURS = 6  # style.css has m0 to m5
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 36

Report = Mapping[str, Any]


def precision_recall_panels(report: Report, *, condition: str = "U|U") -> list[dict[str, Any]]:
    """Return a panel per direction: lines (points as SVG text), the chance line's height, and the ticks."""
    if condition not in main_method(report)["classes"]:
        return []
    panels = []
    for part, title in DIRECTIONS:
        found = [method["classes"][condition][part] for method in report["methods"]]
        highest = max((value for one in found for value in one["precision_at_recall"] if value), default=1.0)
        top = axis_top(highest)
        chance = found[0]["chance_precision_at_r"]
        panels.append(
            {
                "title": title,
                "chance_y": None if chance is None else _y(chance / top),
                "lines": [
                    {
                        "name": method["name"],
                        "number": number % NUM_COLOURS,
                        "points": polyline(one["precision_at_recall"], top=top),
                    }
                    for number, (method, one) in enumerate(zip(report["methods"], found, strict=True))
                ],
                "x_ticks": [{"at": _x(level), "text": f"{level:g}"} for level in (0, 0.25, 0.5, 0.75, 1)],
                "y_ticks": [
                    {"at": _y(step / 4), "text": f"{top * step / 4:.3g}"} for step in (0, 1, 2, 3, 4)
                ],
                "frame": {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
                "size": {"width": WIDTH, "height": HEIGHT},
            }
        )
    return panels


def polyline(precisions: Sequence[float | None], *, top: float) -> str:
    """Return the SVG points of a curve over RECALL_LEVELS; undefined values are left out.

    >>> polyline([1.0] + [None] * 20, top=1.0)
    '44.0,12.0'
    """
    return " ".join(
        f"{_x(float(level)):.1f},{_y(value / top):.1f}"
        for level, value in zip(RECALL_LEVELS, precisions, strict=True)
        if value is not None
    )


def axis_top(highest: float) -> float:
    """Return the end of an axis that holds values from 0 to `highest` (at most 1).

    >>> axis_top(0.31), axis_top(1.0)
    (0.4, 1.0)
    """
    return next(level for level in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if level >= min(highest, 1.0))


def class_bars(report: Report, *, condition: str = "U|U", against: str = "cca") -> dict[str, Any] | None:
    """Return the unseen classes, best first: the main method's AP (both directions' mean) and a baseline's.

    None where the condition was not evaluated. `percent` is of the scale's width.
    """
    method = main_method(report)
    if condition not in method["classes"]:
        return None
    ours = _class_scores(method["classes"][condition])
    other = next((one for one in report["methods"] if one["key"] == against), None)
    baseline = _class_scores(other["classes"][condition]) if other else {}
    scale = axis_top(max([*ours.values(), *baseline.values()], default=1.0))
    rows = [
        {
            "name": name,
            "value": value,
            "percent": 100 * value / scale,
            "baseline": baseline.get(name),
            "baseline_percent": 100 * baseline[name] / scale if name in baseline else None,
        }
        for name, value in sorted(ours.items(), key=lambda item: (-item[1], item[0]))
    ]
    return {"scale": scale, "has_baseline": bool(baseline), "rows": rows}


def _class_scores(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Mean over the directions that have a value for the class."""
    found: dict[str, list[float]] = {}
    for part, _title in DIRECTIONS:
        for name, value in numbers[part]["per_class"].items():
            if value is not None:
                found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
