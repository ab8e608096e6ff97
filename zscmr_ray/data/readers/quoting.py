"""How data are quoted in errors and reasons: printable, short, and never repeating what could be a gigabyte.

A reason becomes a parquet string, and a lone surrogate in one would lose its whole shard.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from itertools import islice

MAX_REASON_CHARS = 300
_SHOWN_CHARS = 80
_SHOWN_NAMES = 40

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _SHOWN_CHARS
_REPR.maxlevel = 2


def printable(text: str, *, max_chars: int = MAX_REASON_CHARS) -> str:
    """Return text that UTF-8 can hold, surrogates written out, cut at `max_chars`."""
    if len(text) > max_chars:
        text = text[: max_chars - 3] + "..."
    return text.encode("utf-8", "backslashreplace").decode()


def shown(value: object) -> str:
    """Return a short repr of any value, however large or deep."""
    text = _REPR.repr(value)
    return printable(text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "...")


def listed(names: Iterable[str]) -> str:
    """Return names separated by commas, the first few and short."""
    return printable(
        ", ".join(printable(name, max_chars=_SHOWN_CHARS) for name in islice(names, _SHOWN_NAMES))
    )
