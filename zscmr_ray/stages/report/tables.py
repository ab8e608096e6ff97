"""The report's numbers laid out as tables, for the page and for the terminal.

What it is: formatting and choice of what is shown where; every mAP keeps its interval and its chance level beside it.
What it is not: a computation of any number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CONDITIONS = ("U|U", "S|S", "U|all", "S|all", "H")
PARTS = (
    ("average", "Average of both directions"),
    ("image_to_text", "Image → text"),
    ("text_to_image", "Text → image"),
)
DIRECTIONS = PARTS[1:]
CUTOFFS = ("1", "5", "10")
OURS = ("both", "regions", "labels")

Report = Mapping[str, Any]
Table = dict[str, Any]


def number(value: float | None, digits: int = 3) -> str:
    """Return the number without its leading zero, as result tables print it, or a dash for none.

    >>> number(0.2804), number(1.0), number(None), number(12.5, 1)
    ('.280', '1.000', '–', '12.5')
    """
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def span(interval: Sequence[float | None] | None) -> str:
    """Return an interval as text.

    >>> span([0.2, 0.31]), span(None)
    ('.200–.310', '–')
    """
    if not interval or interval[0] is None:
        return "–"
    return f"{number(interval[0])}–{number(interval[1])}"


def main_method(report: Report) -> Mapping[str, Any]:
    """Return the method the report is about: the fused score, or regions where there are no label distributions."""
    by_key = {method["key"]: method for method in report["methods"]}
    return next(by_key[key] for key in OURS if key in by_key)


def headline(report: Report) -> list[Table]:
    """Return the few numbers on top: unseen average mAP and H of the main method, or its recalls without labels."""
    method = main_method(report)
    found = []
    titles = (("U|U", "Unseen classes, mAP"), ("U|all", "Unseen among all, mAP"), ("H", "Harmonic mean H"))
    for condition, title in titles:
        if condition in method["classes"]:
            found.append({"title": title, **method["classes"][condition]["average"]})
    if not found and "test" in method["instance"]:
        for part, title in DIRECTIONS:
            recall = method["instance"]["test"][part]["recall"]["10"]
            found.append({"title": f"{title}, R@10", **recall, "map": recall["value"]})
    for entry in found:
        level = entry.get("chance")
        entry["times_chance"] = entry["map"] / level if entry["map"] is not None and level else None
    return found


def class_tables(report: Report) -> list[Table]:
    """Return one table for each of average, image to text, text to image: a row per method, a cell per condition."""
    present = [name for name in CONDITIONS if name in main_method(report)["classes"]]
    if not present:
        return []
    return [
        {
            "title": title,
            "conditions": present,
            "rows": [
                {
                    "name": method["name"],
                    "key": method["key"],
                    "cells": [method["classes"][name][part] for name in present],
                }
                for method in report["methods"]
            ],
        }
        for part, title in PARTS
    ]


def instance_tables(report: Report) -> list[Table]:
    """Return one table for each set of rows that was searched by instance: a row per method and direction."""
    names = {"test": "All test items", "test U": "Test items of unseen classes"}
    return [
        {
            "title": names[rows],
            "rows": [
                {
                    "name": method["name"],
                    "key": method["key"],
                    "direction": title,
                    **method["instance"][rows][part],
                }
                for method in report["methods"]
                for part, title in DIRECTIONS
            ],
        }
        for rows in names
        if rows in main_method(report)["instance"]
    ]


def text_summary(report: Report) -> str:
    """Return the main table as Markdown: methods by condition, average of both directions, chance in the last row."""
    tables = class_tables(report)
    if not tables:
        return _instance_summary(report)
    table = tables[0]
    lines = [
        "| mAP@all, average of both directions | " + " | ".join(table["conditions"]) + " |",
        "|---" * (1 + len(table["conditions"])) + "|",
    ]
    for row in table["rows"]:
        cells = [f"{number(cell['map'])} ({span(cell['interval'])})" for cell in row["cells"]]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    chances = [number(cell["chance"]) for cell in table["rows"][0]["cells"]]
    lines.append("| chance | " + " | ".join(chances) + " |")
    return "\n".join(lines)


def _instance_summary(report: Report) -> str:
    lines = [
        "| instance retrieval | direction | R@1 | R@5 | R@10 | median rank |",
        "|---|---|---|---|---|---|",
    ]
    for table in instance_tables(report)[:1]:
        for row in table["rows"]:
            cells = [
                f"{number(row['recall'][k]['value'])} ({span(row['recall'][k]['interval'])}"
                f", chance {number(row['recall'][k]['chance'])})"
                for k in CUTOFFS
            ]
            ranks = f"{number(row['median_rank'], 1)} (chance {number(row['chance_median_rank'], 1)})"
            lines.append(f"| {row['name']} | {row['direction']} | {' | '.join(cells)} | {ranks} |")
    return "\n".join(lines)
