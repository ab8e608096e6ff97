"""How many items have a class where classes were made of captions: said at the end, because nobody else counts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pyarrow.parquet as pq

from zscmr_ray.manifest import Manifest
from zscmr_ray.storage import Store

_SHOWN = 10


def coverage_line(store: Store, manifest: Manifest) -> str:
    """The share of finished pairs that have a class, and the largest dominant classes."""
    num_items = 0
    dominant: Counter[str] = Counter()
    named: set[str] = set()
    for labels in _labels(store, manifest):
        num_items += 1
        named.update(labels)
        if labels:
            dominant[labels[0]] += 1
    num_covered = sum(dominant.values())
    largest = ", ".join(f"{name} {count}" for name, count in dominant.most_common(_SHOWN))
    share = num_covered / max(1, num_items)
    return (
        f"classes of captions: {num_covered} of {num_items} items have one ({share:.1%}), {len(named)} classes; "
        f"dominant: {largest or 'none'}"
    )


def _labels(store: Store, manifest: Manifest) -> Iterator[list[str]]:
    for part in manifest.parts:
        if "/" in part.name:
            continue
        with store.open(part.name) as file:
            yield from pq.read_table(file, columns=["labels"]).column("labels").to_pylist()
