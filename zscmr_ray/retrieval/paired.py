"""Is one run better than another? A paired test on the same classes: their gains, with signs flipped by class.

What it is: per class the difference of the two runs' average precision (`metrics.per_class_means`, both directions'
mean), averaged over the class splits in which the class is unseen. Under the null hypothesis that the runs are alike
each class's gain is as likely to be its negative, so every pattern of signs is equally likely:
    p = the share of sign patterns whose |mean gain| is at least the observed one        (two-sided)
All 2^C patterns where they are at most `num_draws`, else that many random ones, the observed one counted among them
(p is then never 0). What it is not: a test over queries (they share their class, and would make every p too small) or
over training seeds. Classes weigh alike here, in mAP queries do, so the mean gain is not the difference of two mAPs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval.bootstrap import interval
from zscmr_ray.retrieval.searches import DIRECTIONS

Values = npt.NDArray[np.float64]
ClassScores = Mapping[str, float]

_TOLERANCE = 1e-12  # sums of the same numbers in another order are still ties


@dataclass(frozen=True, slots=True)
class PairedTest:
    """The outcome: mean gain over classes with its 95% interval (classes resampled), and p."""

    mean_gain: float
    interval: tuple[float, float]
    p: float
    num_classes: int
    num_better: int
    is_exact: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"interval": list(self.interval)}


def compare_classes(
    ours: Sequence[ClassScores], theirs: Sequence[ClassScores], *, num_draws: int = 10_000, seed: int = 0
) -> PairedTest:
    """Test the gains of one run over another; each gives the average precision by class, once per class split.

    Raises DataError where the two do not hold the same classes.

    >>> compare_classes([{"a": 0.5, "b": 0.4}], [{"a": 0.3, "b": 0.3}]).p
    0.5
    """
    gains_C = np.array(list(class_gains(ours, theirs).values()))
    draws_SC = np.random.default_rng(seed).integers(0, len(gains_C), size=(num_draws, len(gains_C)))
    p, is_exact = sign_flip_p(gains_C, num_draws=num_draws, seed=seed)
    return PairedTest(
        mean_gain=float(gains_C.mean()),
        interval=interval(gains_C[draws_SC].mean(1)),
        p=p,
        num_classes=len(gains_C),
        num_better=int((gains_C > 0).sum()),
        is_exact=is_exact,
    )


def class_gains(ours: Sequence[ClassScores], theirs: Sequence[ClassScores]) -> dict[str, float]:
    """Return each class's gain, averaged over the splits that hold it; DataError where the classes differ.

    >>> class_gains([{"a": 0.5}, {"a": 0.7, "b": 0.5}], [{"a": 0.5}, {"a": 0.5, "b": 0.75}])
    {'a': 0.1, 'b': -0.25}
    """
    found: dict[str, list[float]] = {}
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one.keys() != other.keys():
            raise DataError(
                f"the two runs have other classes in class split {number + 1} of {len(ours)}",
                got=f"only in one of them: {', '.join(sorted(one.keys() ^ other.keys())[:5])}",
                expected="the same unseen classes in both, with queries of each",
                remedy="compare runs on the same pairs and the same split settings",
            )
        for name in one:
            found.setdefault(name, []).append(one[name] - other[name])
    if not found:
        raise DataError(
            "there are no classes to compare by",
            got="no class with a query in both runs",
            expected="runs on a corpus with classes, some of them unseen",
        )
    # Rounded far below any difference that means something: .7 - .5 is .2, not .19999999999999996.
    return {name: round(float(np.mean(gains)), 12) for name, gains in found.items()}


def sign_flip_p(gains_C: Values, *, num_draws: int = 10_000, seed: int = 0) -> tuple[float, bool]:
    """Return the two-sided p of the mean gain, and whether every sign pattern was counted.

    >>> sign_flip_p(np.array([0.1, 0.2, 0.3]))
    (0.25, True)
    """
    observed = abs(float(gains_C.sum())) - _TOLERANCE
    is_exact = len(gains_C) < 63 and 2 ** len(gains_C) <= num_draws
    if is_exact:
        patterns_S = np.arange(2 ** len(gains_C))
        bits_SC = (patterns_S[:, None] >> np.arange(len(gains_C))) & 1
        return float((np.abs((1 - 2 * bits_SC) @ gains_C) >= observed).mean()), True
    bits_SC = np.random.default_rng(seed).integers(0, 2, size=(num_draws, len(gains_C)))
    num_as_large = int((np.abs((1 - 2 * bits_SC) @ gains_C) >= observed).sum())
    return (1 + num_as_large) / (1 + num_draws), False


def average_by_class(condition: Mapping[str, Any]) -> dict[str, float]:
    """Return each class's average precision, the mean of both directions, from one condition of `evaluate_method`."""
    found: dict[str, list[float]] = {}
    for direction in DIRECTIONS:
        for name, value in condition[direction]["per_class"].items():
            if value is not None:
                found.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()}
