"""One thing that was looked at: what it is, whether it is well, and what to do where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zscmr_ray.errors import ZscmrError

State = Literal["ok", "warning", "failed"]
OK: State = "ok"
WARNING: State = "warning"
FAILED: State = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is what was looked at, in a word; `said` what was found; a finding that is not ok has a remedy."""

    check: str
    state: State
    said: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert self.state == OK or self.remedy, f"{self.check}: a finding without a remedy"


def failed_by(check: str, error: ZscmrError) -> Finding:
    """The finding that one of our own errors is.

    >>> from zscmr_ray.errors import DataError
    >>> failed_by("input", DataError("no such file", got="a.tar", remedy="check the path"))
    Finding(check='input', state='failed', said='no such file; got: a.tar', remedy='check the path')
    """
    parts = [error.message]
    if error.got is not None:
        parts.append(f"got: {error.got}")
    if error.expected is not None:
        parts.append(f"expected: {error.expected}")
    return Finding(check, FAILED, "; ".join(parts), error.remedy or "see docs/operations.md")


def worst(findings: Sequence[Finding]) -> State:
    """The worst state among findings; ok when there are none.

    >>> worst([Finding("disk", "ok", "12 GB free"), Finding("memory", "warning", "2 GB", "4 GB or more")])
    'warning'
    """
    order = (OK, WARNING, FAILED)
    return max((finding.state for finding in findings), key=order.index, default=OK)
