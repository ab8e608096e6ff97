"""Is one evaluated run better than another on unseen classes? Two runs, or several class splits of each, from their reports.

What it is: reports read, rows chosen, `retrieval/paired.py` called, the answer in words. What it is not: an evaluation:
nothing unseen is looked at again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zscmr_ray.errors import ConfigError, DataError
from zscmr_ray.retrieval.paired import PairedTest, average_by_class, class_gains, compare_classes
from zscmr_ray.stages import DIRECTORIES
from zscmr_ray.stages.report import REPORT
from zscmr_ray.storage import Store

_SHOWN_CLASSES = 5


@dataclass(frozen=True)
class Side:
    """One row of one report per class split: its name, and the condition's numbers."""

    name: str
    averages: tuple[Mapping[str, Any], ...]
    by_class: tuple[dict[str, float], ...]
    pairs: tuple[str | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Two sides, the test of the first over the second, and each class's gain."""

    ours: Side
    theirs: Side
    condition: str
    test: PairedTest
    gains: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        sides = {
            side: {"name": one.name, "splits": [dict(average) for average in one.averages]}
            for side, one in (("ours", self.ours), ("theirs", self.theirs))
        }
        return sides | {"condition": self.condition, "test": self.test.to_json(), "gains": self.gains}


def compare_runs(
    ours: Sequence[str],
    theirs: Sequence[str],
    *,
    our_method: str | None = None,
    their_method: str | None = None,
    condition: str = "U|U",
) -> Comparison:
    """Compare runs pair by pair: the n-th of `ours` with the n-th of `theirs`, one for each class split.

    A method is a row's key in report.json (both, regions, cca ...); None = the one the report is about. Raises DataError
    for a run without a report, a row that is not there, or other classes; ConfigError for unequal numbers of runs.
    """
    if len(ours) != len(theirs):
        raise ConfigError(
            "each run is compared with one other",
            got=f"{len(ours)} and {len(theirs)} runs",
            expected="as many on either side: A1,A2 B1,B2",
        )
    sides = [_side(runs, method, condition) for runs, method in ((ours, our_method), (theirs, their_method))]
    test = compare_classes(sides[0].by_class, sides[1].by_class)
    gains = class_gains(sides[0].by_class, sides[1].by_class)
    return Comparison(sides[0], sides[1], condition, test, gains)


def comparison_lines(found: Comparison) -> list[str]:
    """The answer in words: both sides, the gain by class, p, and the classes that moved most."""
    test = found.test
    lines = [_side_line("A", found.ours, found.condition), _side_line("B", found.theirs, found.condition)]
    how = "all sign patterns" if test.is_exact else "10,000 random sign patterns"
    lines.append(
        f"A over B, by class: {test.mean_gain:+.4f} (95% {test.interval[0]:+.4f} to {test.interval[1]:+.4f}), better in "
        f"{test.num_better} of {test.num_classes} classes, p = {test.p:.4f} ({how}, two-sided)"
    )
    ordered = sorted(found.gains.items(), key=lambda item: item[1])
    worst, best = ordered[:_SHOWN_CLASSES], ordered[::-1][:_SHOWN_CLASSES]
    for name, some in (("most gained", best), ("most lost", worst)):
        lines.append(f"{name}: " + ", ".join(f"{label} {gain:+.3f}" for label, gain in some))
    if any(a != b for a, b in zip(found.ours.pairs, found.theirs.pairs, strict=True)):
        lines.append("note: the runs were evaluated on other pairs, so that their queries differ")
    return lines


def _side(runs: Sequence[str], method: str | None, condition: str) -> Side:
    reports = [_read_report(uri) for uri in runs]
    rows = [_row(report, method or report["main"], uri) for report, uri in zip(reports, runs, strict=True)]
    for row, uri in zip(rows, runs, strict=True):
        if condition not in row["classes"]:
            raise DataError(
                f"the report has no numbers for {condition}",
                got=f"{uri}: {', '.join(row['classes']) or 'no classes'}",
                expected="a run with unseen classes",
            )
    return Side(
        name=str(rows[0]["name"]),
        averages=tuple(row["classes"][condition]["average"] for row in rows),
        by_class=tuple(average_by_class(row["classes"][condition]) for row in rows),
        pairs=tuple(report["data"].get("pairs_fingerprint") for report in reports),
    )


def _read_report(uri: str) -> Any:
    for store in (Store(uri).child(DIRECTORIES["evaluate"]), Store(uri)):
        if store.is_file(REPORT):
            return store.read_json(REPORT)
    raise DataError(
        "no report to compare", got=uri, expected=f"a run with {REPORT}", remedy="run `zscmr evaluate`"
    )


def _row(report: Any, key: str, uri: str) -> Any:
    for row in report["methods"]:
        if row["key"] == key:
            return row
    raise DataError(
        "no such row in the report",
        got=f"{key} in {uri}",
        expected=", ".join(row["key"] for row in report["methods"]),
    )


def _side_line(letter: str, side: Side, condition: str) -> str:
    numbers = "; ".join(
        f"{one['map']:.4f} (95% {one['interval'][0]:.4f} to {one['interval'][1]:.4f}, chance {one['chance']:.4f})"
        for one in side.averages
    )
    return f"{letter}: {side.name}, {condition} mAP@all {numbers}"
