"""The worked examples of docs/operations.md are true."""

from __future__ import annotations

import doctest
from pathlib import Path

from tests.chaos import tables

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"


def test_worked_examples() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert tried and not failed


def test_a_run_writes_its_row() -> None:
    failed, tried = doctest.testmod(tables)
    assert tried and not failed
    for name in ("chaos", "autoscaling"):
        assert f"<!-- table {name} -->" in PAGE.read_text()
