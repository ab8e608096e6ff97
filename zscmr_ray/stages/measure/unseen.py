"""How often unseen classes were evaluated: a count beside the stages, which `--overwrite` of a stage does not clear.

What was looked at stays looked at (SCIENCE 4): a choice made after many looks is worth less than one made after none,
so every report says the number. What it is not: a lock; nothing is refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from zscmr_ray.storage import Store

COUNTER = "unseen_evaluations.json"


@dataclass(frozen=True, slots=True)
class Looks:
    """Evaluations of unseen classes: with one model, and with all of a directory's models together."""

    with_model: int
    in_all: int


def count_unseen(store: Store, name: str) -> Looks:
    """Count one more evaluation with the model of that name, before it is made; returns the counts, it included.

    One writer at a time: the store is a directory that the caller holds.
    """
    counts = _read(store)
    counts[name] += 1
    store.write_json(COUNTER, dict(counts))
    return Looks(counts[name], counts.total())


def unseen_looks(store: Store) -> int:
    """Return the evaluations counted in a directory so far."""
    return _read(store).total()


def _read(store: Store) -> Counter[str]:
    return Counter(store.read_json(COUNTER)) if store.exists(COUNTER) else Counter()
