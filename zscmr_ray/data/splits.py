"""Class splits (seen, pseudo-unseen, unseen), the instance partition, and the rows each of them may use.

The zero-shot protocol of SCIENCE 4: training never meets an item of an unseen class; everything that is selected
is selected on pseudo-unseen classes, which are held out of the seen ones. Not the metrics (`retrieval/`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from zscmr_ray.data.coco_classes import UNSEEN_15, UNSEEN_17, coco_seen
from zscmr_ray.data.split_rules import (
    PSEUDO_STREAM,
    UNSEEN_STREAM,
    draw,
    explicit_unseen,
    num_pseudo_unseen,
    ratio_unseen,
    require_two_classes,
    some,
)
from zscmr_ray.errors import ConfigError, DataError

SplitKind = Literal["even_odd", "ratio", "random", "explicit", "coco_48_17", "coco_65_15", "none"]
SplitRule = Literal["all_labels", "dominant"]
Labels = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class ClassSplit:
    """Which classes are trained on and which are not; every tuple is in class order.

    `pseudo_unseen` is a subset of `seen`; seen, unseen and dropped are disjoint. `dropped` classes are in neither:
    too few items, or left out of an explicit split. `rule` says what an item of several classes is (`no_leak.py`).
    """

    kind: SplitKind
    fraction: float
    seed: int
    min_items_per_class: int
    seen: tuple[str, ...]
    pseudo_unseen: tuple[str, ...]
    unseen: tuple[str, ...]
    dropped: tuple[str, ...]
    rule: SplitRule = "all_labels"

    def __post_init__(self) -> None:
        for one, other in (("seen", "unseen"), ("seen", "dropped"), ("unseen", "dropped")):
            shared = set(getattr(self, one)) & set(getattr(self, other))
            if shared:
                raise DataError(f"class split: {one} and {other} share classes", got=sorted(shared))
        stray = set(self.pseudo_unseen) - set(self.seen)
        if stray:
            raise DataError("class split: pseudo-unseen classes are not all seen ones", got=sorted(stray))

    def trained(self, *, refit: bool) -> tuple[str, ...]:
        """Return the classes trained on: all seen ones after a refit, else those that are not pseudo-unseen."""
        if refit:
            return self.seen
        held_out = set(self.pseudo_unseen)
        return tuple(name for name in self.seen if name not in held_out)

    @property
    def file_name(self) -> str:
        """The split's name under `splits/`: `<kind>-<fraction>-<seed>.json`."""
        return f"{self.kind}-{self.fraction:g}-{self.seed}.json"

    def summary(self) -> dict[str, int]:
        """Return the number of classes of each part, for printing."""
        return {name: len(getattr(self, name)) for name in ("seen", "pseudo_unseen", "unseen", "dropped")}

    def to_json(self) -> str:
        """Return the split as JSON text: sorted keys, the same bytes for the same split."""
        return json.dumps(asdict(self), sort_keys=True, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ClassSplit:
        """Read what `to_json` wrote; raises DataError for anything else, overlapping classes included."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise DataError("a class split file is not JSON", got=str(error)) from error
        names = {field.name for field in fields(cls)}
        # Splits written before there was a second rule name none.
        if not isinstance(raw, dict) or set(raw) | {"rule"} != names:
            got = sorted(raw) if isinstance(raw, dict) else type(raw).__name__
            raise DataError("a class split file has other fields", got=got, expected=sorted(names))
        lists = {name: tuple(raw[name]) for name in ("seen", "pseudo_unseen", "unseen", "dropped")}
        return cls(**{**raw, **lists})


def count_classes(labels: Labels, class_order: Sequence[str] = ()) -> dict[str, int]:
    """Return the items of each class, in class order: the given order, else sorted names.

    Raises ConfigError when a given order does not name every class exactly once (names without items count 0).
    """
    counts = Counter(label for row in labels for label in set(row))
    if not class_order:
        return {name: counts[name] for name in sorted(counts)}
    missing = sorted(set(counts) - set(class_order))
    if missing or len(set(class_order)) != len(class_order):
        raise ConfigError(
            "split.class_order must name every class once",
            got=f"{len(class_order)} names; missing: {some(missing)}",
            expected=f"the {len(counts)} classes of the data",
            remedy="add the missing classes, remove repeats, or leave split.class_order empty (sorted names)",
        )
    return {name: counts[name] for name in class_order}


def make_class_split(
    class_counts: Mapping[str, int],
    kind: SplitKind,
    *,
    fraction: float = 0.5,
    seed: int = 0,
    min_items_per_class: int = 10,
    pseudo_unseen_fraction: float = 0.2,
    seen: Sequence[str] = (),
    unseen: Sequence[str] = (),
    rule: SplitRule = "all_labels",
) -> ClassSplit:
    """Split the classes; the order of `class_counts` is the class order, `fraction` the unseen share in (0, 1).

    Classes with fewer than `min_items_per_class` items are dropped first; then, over the kept classes c = 0, 1, ...
    - even_odd: c is unseen iff c is even (the PKU DADN reference; `fraction` is 0.5);
    - ratio: with n = floor(1 / fraction), c is unseen iff c % n == 0 (10%: n = 10, 30%: n = 3). Above one half the
      rule is turned round: with n = floor(1 / (1 - fraction)), c is seen iff c % n == n - 1;
    - random: round(fraction x classes), at least one on either side, drawn by `seed`;
    - explicit: the `unseen` list, and the `seen` list or, when it is empty, all other classes;
    - coco_48_17, coco_65_15: the published lists, as far as the data have the classes; those in neither are dropped;
    - none: no class is unseen (instance retrieval only); all classes are seen and none pseudo-unseen.
    Pseudo-unseen are round(pseudo_unseen_fraction x seen) of the seen classes, drawn by `seed`: at least one, and
    two where four are seen (retrieval among one class is trivial); none when only one class is seen or the fraction is 0.

    Raises DataError when no split is possible (no or one class, nothing unseen), ConfigError for wrong lists.
    """
    if kind not in get_args(SplitKind):
        raise ConfigError("unknown split.kind", got=kind, expected=", ".join(get_args(SplitKind)))
    if kind == "none":
        return ClassSplit(kind, 0.0, seed, 1, tuple(class_counts), (), (), ())
    names = [name for name, count in class_counts.items() if count >= min_items_per_class]
    require_two_classes(names, class_counts, min_items_per_class)
    match kind:
        case "even_odd":
            fraction, chosen = 0.5, set(names[::2])
        case "ratio":
            chosen = ratio_unseen(names, fraction)
        case "random":
            chosen = draw(
                names, min(max(1, round(fraction * len(names))), len(names) - 1), seed, UNSEEN_STREAM
            )
        case "explicit":
            chosen = explicit_unseen(names, class_counts, min_items_per_class, seen, unseen)
            names = [name for name in names if name in chosen or not seen or name in set(seen)]
            fraction = round(len(chosen) / len(names), 2)
        case "coco_48_17" | "coco_65_15":
            listed = UNSEEN_17 if kind == "coco_48_17" else UNSEEN_15
            chosen, listed_seen = set(names) & set(listed), coco_seen(listed)
            names = [name for name in names if name in chosen or name in listed_seen]
            fraction = round(len(chosen) / max(1, len(names)), 2)
    kept_seen = [name for name in names if name not in chosen]
    kept_unseen = [name for name in names if name in chosen]
    if not kept_seen or not kept_unseen:
        raise DataError(
            f"split.kind={kind} leaves no {'unseen' if kept_seen else 'seen'} class",
            got=f"{len(names)} classes, unseen fraction {fraction:g}",
            expected="at least one class on either side",
            remedy="choose another split.kind or split.unseen_fraction, or --set split.kind=none",
        )
    pseudo = draw(kept_seen, num_pseudo_unseen(len(kept_seen), pseudo_unseen_fraction), seed, PSEUDO_STREAM)
    return ClassSplit(
        kind=kind,
        fraction=fraction,
        seed=seed,
        min_items_per_class=min_items_per_class,
        seen=tuple(kept_seen),
        pseudo_unseen=tuple(name for name in kept_seen if name in pseudo),
        unseen=tuple(kept_unseen),
        dropped=tuple(name for name in class_counts if name not in set(names)),
        rule=rule,
    )


def instance_partition(item_id: str) -> Literal["train", "val", "test"]:
    """Return the partition of an item whose corpus has none: sha256(id) mod 10 is 0-2 test, 3 val, else train.

    >>> [instance_partition(f"a.tar#{n}") for n in range(4)]
    ['train', 'test', 'train', 'train']
    """
    bucket = int.from_bytes(hashlib.sha256(item_id.encode()).digest(), "big") % 10
    if bucket < 3:
        return "test"
    return "val" if bucket == 3 else "train"


def rows_of(labels: Labels, classes: Collection[str]) -> npt.NDArray[np.bool_]:
    """Return a mask [rows]: rows with at least one label, ALL of whose labels are among the classes.

    The one rule for multi-label rows, for training (trained classes) as for queries and galleries (unseen ones).

    >>> rows_of([["cat"], ["cat", "dog"], []], {"cat"}).tolist()
    [True, False, False]
    """
    chosen = frozenset(classes)
    return np.array([bool(row) and chosen.issuperset(row) for row in labels], dtype=np.bool_)


def training_rows(labels: Labels, split: ClassSplit, *, refit: bool) -> npt.NDArray[np.bool_]:
    """Return a mask [rows] of the rows that may be trained on: all of them when the split is of kind none.

    Otherwise a row without labels may not: it could show an unseen class.
    """
    if split.kind == "none":
        return np.ones(len(labels), dtype=np.bool_)
    return rows_of(labels, split.trained(refit=refit))


def check_no_leak(train_labels: Labels, split: ClassSplit, *, refit: bool) -> None:
    """Raise DataError if a training row carries a label that is not trained on; names the rows and classes."""
    if split.kind == "none":
        return
    trained = frozenset(split.trained(refit=refit))
    leaks = [(row, sorted(set(labels) - trained)) for row, labels in enumerate(train_labels)]
    leaks = [(row, classes) for row, classes in leaks if classes]
    if leaks:
        shown = some([f"row {row}: {' + '.join(classes)}" for row, classes in leaks])
        raise DataError(
            "training rows of classes that must not be trained on",
            got=f"{len(leaks)} of {len(train_labels)} rows ({shown})",
            expected=f"only labels among the {len(trained)} trained classes of {split.file_name}",
            remedy="select training rows with training_rows(labels, split, refit=...)",
        )


def select_capped(ids: Sequence[str], labels: Labels, max_items_per_class: int) -> npt.NDArray[np.bool_]:
    """Return a keep mask [rows]: of each class the items with the smallest sha256(id).

    A row of several classes is kept if any of them keeps it, a row of none always (no class caps it). The result
    depends on the set of rows only, not on their order or shards.
    """
    by_class: dict[str, list[tuple[bytes, int]]] = {}
    keep = np.zeros(len(ids), dtype=np.bool_)
    for row, (item_id, row_labels) in enumerate(zip(ids, labels, strict=True)):
        keep[row] = not row_labels
        digest = hashlib.sha256(item_id.encode()).digest()
        for label in set(row_labels):
            by_class.setdefault(label, []).append((digest, row))
    for members in by_class.values():
        for _, row in sorted(members)[:max_items_per_class]:
            keep[row] = True
    return keep
