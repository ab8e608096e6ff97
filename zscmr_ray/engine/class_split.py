"""The class split that a configuration asks for, of the classes that are there. Needs no torch: plans are made without."""

from __future__ import annotations

from zscmr_ray.config import SplitSection
from zscmr_ray.data.no_leak import rule_of
from zscmr_ray.data.splits import ClassSplit, Labels, count_classes, make_class_split


def configured_split(labels: Labels, section: SplitSection) -> ClassSplit:
    """Split the classes of all rows as `split.*` says. Raises as `make_class_split`.

    Under the dominant rule an item counts for its first class only; `no_leak.py` then says what its labels are.
    """
    rule = rule_of(section.kind, section.rule)
    counted = [row[:1] for row in labels] if rule == "dominant" else labels
    return make_class_split(
        count_classes(counted, section.class_order),
        section.kind,
        fraction=section.unseen_fraction,
        seed=section.seed,
        min_items_per_class=section.min_items_per_class,
        pseudo_unseen_fraction=section.pseudo_unseen_fraction,
        unseen=section.unseen_classes,
        rule=rule,
    )
