"""How each kind of class split chooses its classes, and what it refuses (SCIENCE 4).

The rules behind `splits.make_class_split`; nothing here knows rows, files or the split as a whole.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from zscmr_ray.errors import ConfigError, DataError

UNSEEN_STREAM = 0x0175
PSEUDO_STREAM = 0x05E0
_SHOWN = 5


def require_two_classes(names: Sequence[str], counts: Mapping[str, int], min_items_per_class: int) -> None:
    """Raise DataError unless at least two classes are large enough, naming those there are."""
    if len(names) >= 2:
        return
    if len(counts) < 2:
        raise DataError(
            "a class split needs at least two classes",
            got=f"{len(counts)} classes: {some(list(counts))}",
            expected="labels of two classes or more",
            remedy="--set data.columns.label=<column>, or --set split.kind=none for data without classes",
        )
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    raise DataError(
        f"fewer than two classes have split.min_items_per_class={min_items_per_class} items",
        got="largest classes: " + ", ".join(f"{name} ({count})" for name, count in largest),
        expected="two classes or more that are large enough",
        remedy="lower split.min_items_per_class, give more data, or --set split.kind=none",
    )


def ratio_unseen(names: Sequence[str], fraction: float) -> set[str]:
    """Return the unseen classes of the ratio rule; raises ConfigError for a fraction outside (0, 1)."""
    if not 0 < fraction < 1:
        raise ConfigError("split.unseen_fraction is out of range", got=fraction, expected="between 0 and 1")
    # The tiny addend keeps 1 / (1 - 0.9) = 9.999... at 10.
    if fraction <= 0.5:
        period = math.floor(1 / fraction + 1e-9)
        return {name for c, name in enumerate(names) if c % period == 0}
    period = math.floor(1 / (1 - fraction) + 1e-9)
    return {name for c, name in enumerate(names) if c % period != period - 1}


def explicit_unseen(
    names: Sequence[str],
    counts: Mapping[str, int],
    min_items_per_class: int,
    seen: Sequence[str],
    unseen: Sequence[str],
) -> set[str]:
    """Return the unseen classes of an explicit split; raises ConfigError for wrong, unknown or small classes."""
    if not unseen:
        raise ConfigError(
            "split.kind=explicit without unseen classes",
            remedy="""--set split.unseen_classes='["cat", "dog"]', or another split.kind""",
        )
    both = sorted(set(seen) & set(unseen))
    if both:
        raise ConfigError("classes are both seen and unseen", got=some(both), expected="disjoint lists")
    for name in (*seen, *unseen):
        if name not in counts:
            near = difflib.get_close_matches(name, counts, n=1, cutoff=0.0)
            raise ConfigError(
                "an explicit split names a class that the data do not have",
                got=name,
                expected=f"one of the data's {len(counts)} classes",
                remedy=f"did you mean {near[0]!r}?" if near else None,
            )
        if name not in names:
            raise ConfigError(
                "an explicit split names a class with too few items",
                got=f"{name}: {counts[name]} items",
                expected=f"at least split.min_items_per_class={min_items_per_class}",
                remedy="leave the class out or lower split.min_items_per_class",
            )
    return set(unseen)


def num_pseudo_unseen(num_seen: int, fraction: float) -> int:
    """Return how many of the seen classes are pseudo-unseen: one at least, two where four are seen."""
    if fraction == 0 or num_seen < 2:
        return 0
    least = 2 if num_seen >= 4 else 1
    return min(max(round(fraction * num_seen), least), num_seen - 1)


def draw(names: Sequence[str], num: int, seed: int, stream: int) -> set[str]:
    """Draw `num` names without order by (seed, stream); streams keep the draws of one seed independent."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))
    return {names[i] for i in generator.permutation(len(names))[:num]}


def some(names: Iterable[str]) -> str:
    """Return the first few names for an error message, and how many more there are."""
    listed = list(names)
    rest = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return (", ".join(listed[:_SHOWN]) or "none") + rest
