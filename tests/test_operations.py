"""The worked examples of docs/operations.md are true."""

from __future__ import annotations

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"


def test_worked_examples() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert tried and not failed
