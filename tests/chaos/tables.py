"""Tables of docs/operations.md that a run writes: `make chaos` sets ZSCMR_TABLES=1, and each test notes its row.

A table lies between `<!-- table NAME -->` and `<!-- end -->`; a row replaces the one with the same first two cells.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def note_row(table: str, cells: Sequence[str]) -> None:
    """Write a row, or nothing where a run is not asked to."""
    print(f"{table}: {' | '.join(cells)}")
    if os.environ.get("ZSCMR_TABLES"):
        PAGE.write_text(with_row(PAGE.read_text(), table, cells))


def with_row(page: str, table: str, cells: Sequence[str]) -> str:
    """The page with a row in its place, or after all others.

    >>> page = "<!-- table t -->\\n| a | b | c |\\n|---|---|---|\\n| x | y | 1 |\\n<!-- end -->\\n"
    >>> print(with_row(with_row(page, "t", ["x", "y", "2"]), "t", ["x", "z", "3"]).strip())
    <!-- table t -->
    | a | b | c |
    |---|---|---|
    | x | y | 2 |
    | x | z | 3 |
    <!-- end -->
    """
    found = re.search(rf"<!-- table {re.escape(table)} -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert found is not None, f"no table {table}"
    lines = found[1].splitlines()
    row, key = f"| {' | '.join(cells)} |", f"| {cells[0]} | {cells[1]} |"
    at = [number for number, line in enumerate(lines) if line.startswith(key)]
    lines[at[0] if at else len(lines) :] = [row, *(lines[at[0] + 1 :] if at else [])]
    return page[: found.start(1)] + "\n".join(lines) + "\n" + page[found.end(1) :]
