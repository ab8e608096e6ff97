"""Pascal Sentence (Rashtchian et al. 2010): 1,000 pictures of 20 classes with five sentences each.

    dataset/<class>/<image>.jpg
    sentence/<class>/<image>.txt      a sentence a line

No list says which items are whose: of each class, by name, the first 80% train, the next 10% validate and the last 10%
test (40/5/5 of 50: the 800/100/100 of the literature). An item's id is `<class>/<image>`.
"""

from __future__ import annotations

from zscmr_ray.data.layouts.base import LayoutPlan, Listing, images_below
from zscmr_ray.data.records import LayoutRow
from zscmr_ray.schema import Partition

IMAGES, TEXTS = "dataset", "sentence"


def plan_pascal_sentence(listing: Listing) -> LayoutPlan:
    """A row for each picture and each sentence file; the half that is missing rejects the row."""
    images = images_below(listing, IMAGES)
    texts = {key[len(TEXTS) + 1 : -4]: key for key in listing.below(TEXTS) if key.endswith(".txt")}
    by_class: dict[str, list[str]] = {}
    for name in sorted(images.keys() | texts.keys()):
        if name.count("/") == 1:
            by_class.setdefault(name.split("/")[0], []).append(name)
    if not images or not texts or not by_class:
        raise listing.error(
            "no classes",
            got=listing.summary(),
            expected=f"{IMAGES}/<class>/<image>.jpg and {TEXTS}/<class>/<image>.txt",
        )
    rows = [
        LayoutRow(
            id=name,
            image=images.get(name, f"{IMAGES}/{name}.jpg"),
            text=texts.get(name, f"{TEXTS}/{name}.txt"),
            labels=(label,),
            partition=place_of(place, len(names)).value,
        )
        for label, names in sorted(by_class.items())
        for place, name in enumerate(names)
    ]
    return LayoutPlan(
        {"pascal": rows}, remarks=("split 80/10/10 of each class by name (no list is published)",)
    )


def place_of(place: int, num_items: int) -> Partition:
    """The partition of a class's n-th item.

    >>> [sum(place_of(n, 50) is part for n in range(50)) for part in Partition]
    [40, 5, 5]
    """
    num_held = max(1, num_items // 10)
    if place >= num_items - num_held:
        return Partition.TEST
    return Partition.VAL if place >= num_items - 2 * num_held else Partition.TRAIN
