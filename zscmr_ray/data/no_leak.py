"""The no-leak rule for pictures of several classes (SCIENCE 4): what an item counts as under a class split.

`split.rule=dominant`. An item's labels come dominant class first (COCO: the largest area; caption nouns: the most often
named). It tests as unseen if its dominant class is unseen, whatever else it shows; it trains only if it shows no unseen
class AND none of its captions names one. Under the other rule (`all_labels`) an item is of a group when all of its labels
are, and captions are not read. Not the choice of the classes: `splits.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from zscmr_ray.data.coco_classes import name_matcher
from zscmr_ray.data.splits import ClassSplit, SplitRule
from zscmr_ray.schema import Partition

if TYPE_CHECKING:
    from zscmr_ray.data.pairs import PairFeatures

RULE_COLUMNS = ("labels", "captions", "partition")
NO_CLASS = "no class"
NEITHER = "its dominant class is neither seen nor unseen"
SHOWS = "it shows an unseen class"
NAMES = "a caption names an unseen class"


@dataclass(frozen=True, slots=True)
class RuledLabels:
    """The labels that count, by row (none: the row takes part in nothing), and the rows discarded by reason."""

    labels: list[tuple[str, ...]]
    discarded: dict[str, int]


def rule_of(kind: str, rule: Literal["auto", "all_labels", "dominant"]) -> SplitRule:
    """The rule that a configuration asks for.

    >>> rule_of("coco_48_17", "auto"), rule_of("random", "auto"), rule_of("random", "dominant")
    ('dominant', 'all_labels', 'dominant')
    """
    if rule != "auto":
        return rule
    return "dominant" if kind.startswith("coco_") else "all_labels"


def rule_table(table: pa.Table, split: ClassSplit) -> pa.Table:
    """A table of pairs with the labels that count under the split; it needs the columns of `RULE_COLUMNS`."""
    if split.rule != "dominant":
        return table
    labels, captions, partition = (table.column(name).to_pylist() for name in RULE_COLUMNS)
    ruled = dominant_labels(labels, captions, partition, split)
    place = table.schema.get_field_index("labels")
    return table.set_column(place, "labels", pa.array(ruled.labels, pa.list_(pa.string())))


def rule_features(features: PairFeatures, split: ClassSplit) -> PairFeatures:
    """Features in memory with the labels that count under the split."""
    if split.rule != "dominant":
        return features
    ruled = dominant_labels(features.labels, features.captions, features.partition.tolist(), split)
    return replace(features, labels=ruled.labels)


def dominant_labels(
    labels: Sequence[Sequence[str]],
    captions: Sequence[Sequence[str]],
    partition: Sequence[str],
    split: ClassSplit,
) -> RuledLabels:
    """Apply the rule: one label a row, its dominant class, and none for the rows that are discarded.

    A training row that shows or names a pseudo-unseen class beside a seen one keeps that class as a second label, so that
    it is not trained on while that class is held out, and is after a refit.
    """
    unseen, seen, pseudo = frozenset(split.unseen), frozenset(split.seen), frozenset(split.pseudo_unseen)
    matcher = name_matcher((*split.unseen, *split.pseudo_unseen))
    kept: list[tuple[str, ...]] = []
    discarded: Counter[str] = Counter()
    for own, texts, part in zip(labels, captions, partition, strict=True):
        reason: str | None = None
        counted: tuple[str, ...] = tuple(own[:1])
        if not own:
            reason = NO_CLASS
        elif own[0] not in unseen | seen:
            reason = NEITHER
        elif own[0] in seen and part == Partition.TRAIN:
            named = frozenset[str]().union(*map(matcher.named, texts))
            if not unseen.isdisjoint(own):
                reason = SHOWS
            elif not unseen.isdisjoint(named):
                reason = NAMES
            elif own[0] not in pseudo:
                counted += tuple(sorted(pseudo & named.union(own)))
        kept.append(() if reason else counted)
        if reason:
            discarded[reason] += 1
    return RuledLabels(kept, dict(sorted(discarded.items())))
