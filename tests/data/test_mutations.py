"""Every mutant of every picture and container ends as rows, rejects or a clear error: no crash, hang or leak.

Each suite runs in a process of its own (`mutation_child.py`), which a fault of a decoder may take down without taking
the tests along. Numbers are mutants per encoding or container; seeds are fixed, so the same ones fail again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data import mutation_cells, mutation_shards
from tests.data.mutate import mutants
from tests.data.mutation_pictures import pictures

# Mutants in `make test`, and in `make test-long`: per encoding of a picture (25), per container of rows.
_NUM = {
    "pictures": 250,
    **dict.fromkeys(mutation_shards.SUITES, 900),
    **dict.fromkeys(mutation_cells.SUITES, 600),
    "bombs": 1,
}
_NUM_LONG = {name: num * 14 for name, num in _NUM.items() if num > 1}
_LIMIT_S, _LIMIT_LONG_S = 240, 1800
_PEAK_MB = 600


def run_suite(suite: str, num: int, seed: int, journal: Path, *, limit_s: int = _LIMIT_S) -> dict[str, Any]:
    """Run a suite in a child and return what it found; fails with the mutant at hand when the child died."""
    arguments = (suite, str(num), str(seed), str(journal))
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.mutation_child", *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=limit_s,
        cwd=Path(__file__).parents[2],
    )
    at = journal.read_text().splitlines()[-1:] if journal.exists() else []
    assert done.returncode == 0, f"died of {done.returncode} at {at}: {done.stderr[-3000:]}"
    return dict(json.loads(done.stdout))


def check(found: dict[str, Any], num: int) -> None:
    """No fault, bounded memory, as many cases as asked for, and damage that was neither all seen nor all missed."""
    faults = found["faults"]
    assert not faults, f"{len(faults)} faults, the first: {faults[0]}"
    assert found["peak_mb"] < _PEAK_MB
    groups = found["outcomes"].values()
    assert sum(sum(group.values()) for group in groups) >= num
    assert any(group.get("decoded") or group.get("rows") for group in groups)


@pytest.mark.parametrize("suite", list(_NUM))
def test_mutants(suite: str, tmp_path: Path) -> None:
    num = _NUM[suite]
    check(run_suite(suite, num, 20_260, tmp_path / "journal"), num)


@pytest.mark.long
@pytest.mark.timeout(2 * _LIMIT_LONG_S)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("suite", list(_NUM_LONG))
def test_many_mutants(suite: str, seed: int, tmp_path: Path) -> None:
    num = _NUM_LONG[suite]
    check(run_suite(suite, num, seed, tmp_path / "journal", limit_s=_LIMIT_LONG_S), num)


def test_mutants_are_the_same_again_and_not_the_original() -> None:
    specimen = pictures()["png_8"]
    first, again, other = (
        list(mutants(specimen.data, 120, seed=seed, places=specimen.places, repair=specimen.repair))
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert sum(mutant.data != specimen.data for mutant in first) > 110
    assert {mutant.how.split()[0] for mutant in first} >= {
        "cut",
        "flip",
        "number",
        "delete",
        "insert",
        "swap",
    }
