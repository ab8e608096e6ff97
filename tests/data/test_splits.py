"""Class splits: the published rules, disjointness, refusals, and which rows each part may use."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zscmr_ray.data.coco_classes import class_words
from zscmr_ray.data.splits import (
    ClassSplit,
    SplitKind,
    check_no_leak,
    count_classes,
    instance_partition,
    make_class_split,
    rows_of,
    select_capped,
    training_rows,
)
from zscmr_ray.errors import ConfigError, DataError


def classes(number: int, count: int = 20) -> dict[str, int]:
    return {f"c{index:02d}": count for index in range(number)}


def test_even_odd_is_the_reference_split() -> None:
    split = make_class_split(classes(7), "even_odd", fraction=0.3)
    assert split.unseen == ("c00", "c02", "c04", "c06") and split.seen == ("c01", "c03", "c05")
    assert split.file_name == "even_odd-0.5-0.json"


@pytest.mark.parametrize(
    ("fraction", "rule"),
    [
        (0.1, lambda c: c % 10 == 0),
        (0.3, lambda c: c % 3 == 0),
        (0.25, lambda c: c % 4 == 0),
        (0.5, lambda c: c % 2 == 0),
        (0.9, lambda c: c % 10 != 9),
        (0.75, lambda c: c % 4 != 3),
    ],
)
def test_ratio(fraction: float, rule: object) -> None:
    split = make_class_split(classes(40), "ratio", fraction=fraction)
    assert callable(rule)
    assert split.unseen == tuple(f"c{c:02d}" for c in range(40) if rule(c))


def test_random_is_by_seed_and_of_the_asked_size() -> None:
    splits = [make_class_split(classes(30), "random", fraction=0.4, seed=seed) for seed in range(4)]
    assert all(len(split.unseen) == 12 for split in splits)
    assert len({split.unseen for split in splits}) == 4
    assert splits[2] == make_class_split(classes(30), "random", fraction=0.4, seed=2)
    assert splits[1].unseen == tuple(sorted(splits[1].unseen))


def test_small_classes_are_dropped_before_the_rule_counts() -> None:
    counts = {"a": 20, "rare": 9, "b": 10, "c": 20, "d": 20}
    split = make_class_split(counts, "even_odd")
    assert (split.unseen, split.seen, split.dropped) == (("a", "c"), ("b", "d"), ("rare",))


def test_the_given_class_order_is_kept_and_sorted_names_are_the_default() -> None:
    labels = [["b"]] * 3 + [["a", "b"]]
    assert list(count_classes(labels).items()) == [("a", 1), ("b", 4)]
    assert list(count_classes(labels, ["b", "a"]).items()) == [("b", 4), ("a", 1)]
    assert make_class_split(count_classes(labels, ["b", "a"]), "even_odd", min_items_per_class=1).unseen == (
        "b",
    )
    for order in (["b"], ["a", "b", "b"]):
        with pytest.raises(ConfigError, match="class_order"):
            count_classes(labels, order)


def test_explicit_lists() -> None:
    split = make_class_split(classes(5), "explicit", unseen=["c03", "c01"])
    assert (split.unseen, split.seen, split.dropped) == (("c01", "c03"), ("c00", "c02", "c04"), ())
    assert split.fraction == 0.4
    partial = make_class_split(classes(5), "explicit", unseen=["c03"], seen=["c00", "c01"])
    assert partial.dropped == ("c02", "c04") and partial.seen == ("c00", "c01")


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"unseen": ["c09"]}, r"does not|do not have.*c09.*did you mean"),
        ({"unseen": ["c00"], "seen": ["c00", "c01"]}, "both seen and unseen"),
        ({"unseen": ["tiny"]}, r"tiny: 3 items"),
        ({"unseen": []}, "without unseen classes"),
    ],
)
def test_wrong_explicit_lists_are_configuration_errors(lists: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_class_split({**classes(4), "tiny": 3}, "explicit", **lists)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "expected"), [(2, 0), (4, 1), (6, 1), (8, 2), (12, 2), (40, 4), (100, 10)]
)
def test_number_of_pseudo_unseen_classes(number: int, expected: int) -> None:
    split = make_class_split(classes(number), "even_odd", seed=3)
    assert len(split.pseudo_unseen) == expected and set(split.pseudo_unseen) <= set(split.seen)
    assert set(split.trained(refit=False)) == set(split.seen) - set(split.pseudo_unseen)
    assert split.trained(refit=True) == split.seen


def test_no_pseudo_unseen_classes_when_asked_for_none() -> None:
    assert make_class_split(classes(20), "even_odd", pseudo_unseen_fraction=0).pseudo_unseen == ()


@given(
    number=st.integers(2, 60),
    kind=st.sampled_from(["even_odd", "ratio", "random"]),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_parts_are_disjoint_and_complete(number: int, kind: SplitKind, fraction: float, seed: int) -> None:
    counts = {name: 5 + index for index, name in enumerate(classes(number))}
    try:
        split = make_class_split(counts, kind, fraction=fraction, seed=seed)
    except DataError as error:
        assert error.remedy
        return
    parts = [*split.seen, *split.unseen, *split.dropped]
    assert sorted(parts) == sorted(counts) and split.seen and split.unseen
    assert set(split.pseudo_unseen) < set(split.seen) or not split.pseudo_unseen
    assert ClassSplit.from_json(split.to_json()) == split


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, r"at least two classes.*0 classes.*split\.kind=none"),
        ({"only": 50}, r"at least two classes.*1 classes: only"),
        ({"a": 50, "b": 9}, r"min_items_per_class=10.*a \(50\), b \(9\)"),
    ],
)
def test_one_class_only_is_an_error(counts: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_class_split(counts, "even_odd")


def test_no_unseen_and_no_seen_classes_are_errors() -> None:
    with pytest.raises(DataError, match="leaves no seen class"):
        make_class_split(classes(3), "ratio", fraction=0.9)
    with pytest.raises(DataError, match="leaves no seen class"):
        make_class_split(classes(2), "explicit", unseen=["c00", "c01"])
    with pytest.raises(ConfigError, match="out of range"):
        make_class_split(classes(3), "ratio", fraction=1.0)
    with pytest.raises(ConfigError, match=r"split\.kind"):
        make_class_split(classes(3), "odd_even")  # type: ignore[arg-type]


def test_no_split_sees_everything_and_trains_on_every_row() -> None:
    split = make_class_split({}, "none")
    assert split.summary() == {"seen": 0, "pseudo_unseen": 0, "unseen": 0, "dropped": 0}
    assert training_rows([[], []], split, refit=False).all()
    check_no_leak([[], ["x"]], split, refit=False)


def test_json_is_stable_and_refuses_other_files() -> None:
    split = make_class_split(classes(10), "random", seed=1)
    text = split.to_json()
    assert text == make_class_split(classes(10), "random", seed=1).to_json() and text.endswith("}\n")
    raw = json.loads(text)
    assert raw["min_items_per_class"] == 10 and raw["kind"] == "random"
    for wrong in ("{", "[]", "{}", json.dumps({**raw, "extra": 1})):
        with pytest.raises(DataError):
            ClassSplit.from_json(wrong)
    with pytest.raises(DataError, match="seen and unseen share classes"):
        ClassSplit.from_json(json.dumps({**raw, "unseen": raw["seen"]}))
    with pytest.raises(DataError, match="pseudo-unseen"):
        ClassSplit.from_json(json.dumps({**raw, "pseudo_unseen": raw["unseen"][:1]}))


def test_multi_label_rows_belong_where_all_their_labels_do() -> None:
    split = make_class_split({"u": 20, "s": 20, "v": 20, "t": 20}, "even_odd", pseudo_unseen_fraction=0)
    labels = [["s"], ["s", "t"], ["s", "u"], ["u", "v"], [], ["dropped", "s"]]
    assert rows_of(labels, split.unseen).tolist() == [False, False, False, True, False, False]
    train = training_rows(labels, split, refit=False)
    assert train.tolist() == [True, True, False, False, False, False]
    check_no_leak([labels[row] for row in np.flatnonzero(train)], split, refit=False)
    assert rows_of([], split.seen).shape == (0,)


def test_a_leak_names_the_row_and_the_class() -> None:
    split = make_class_split(classes(20), "even_odd")
    with pytest.raises(DataError, match=r"1 of 2 rows \(row 1: c02\)"):
        check_no_leak([["c01"], ["c01", "c02"]], split, refit=True)
    with pytest.raises(DataError, match="must not be trained on"):
        check_no_leak([[split.pseudo_unseen[0]]], split, refit=False)
    check_no_leak([[split.pseudo_unseen[0]]], split, refit=True)


def test_partitions_follow_the_hash_in_the_stated_shares() -> None:
    ids = [f"a.tar#{n}" for n in range(5000)]
    for item in ids[:50]:
        bucket = int(hashlib.sha256(item.encode()).hexdigest(), 16) % 10
        assert instance_partition(item) == (
            "test" if bucket in (0, 1, 2) else "val" if bucket == 3 else "train"
        )
    shares = Counter(map(instance_partition, ids))
    assert abs(shares["test"] - 1500) < 150 and abs(shares["val"] - 500) < 100


def test_capping_keeps_the_smallest_hashes_of_each_class() -> None:
    ids = [f"id{n}" for n in range(60)]
    labels = [["even" if n % 2 == 0 else "odd"] for n in range(60)]
    keep = select_capped(ids, labels, 7)
    for name in ("even", "odd"):
        members = sorted(
            (i for i, row in zip(ids, labels, strict=True) if row == [name]),
            key=lambda i: hashlib.sha256(i.encode()).hexdigest(),
        )
        kept = {i for i, row, k in zip(ids, labels, keep, strict=True) if k and row == [name]}
        assert kept == set(members[:7])
    order = np.random.default_rng(0).permutation(60)
    again = select_capped([ids[n] for n in order], [labels[n] for n in order], 7)
    assert np.array_equal(again, keep[order])


def test_capping_of_multi_label_and_unlabelled_rows() -> None:
    ids, labels = ["a", "b", "c", "d"], [["x", "y"], ["x"], [], ["y", "y"]]
    first_x = min("ab", key=lambda i: hashlib.sha256(i.encode()).digest())
    first_y = min("ad", key=lambda i: hashlib.sha256(i.encode()).digest())
    kept = {i for i, k in zip(ids, select_capped(ids, labels, 1), strict=True) if k}
    assert kept == {first_x, first_y, "c"}
    assert select_capped(ids, labels, 10).all() and select_capped([], [], 1).shape == (0,)


def test_the_published_splits_of_coco() -> None:
    counts = dict.fromkeys(class_words(), 20)
    for kind, sizes in (("coco_48_17", (48, 17, 15)), ("coco_65_15", (65, 15, 0))):
        split = make_class_split(counts, cast(SplitKind, kind), rule="dominant")
        assert (len(split.seen), len(split.unseen), len(split.dropped)) == sizes
        assert split.rule == "dominant" and ClassSplit.from_json(split.to_json()) == split
    few = make_class_split({"dog": 12, "person": 30, "car": 3, "kangaroo": 40}, "coco_48_17")
    assert (few.seen, few.unseen, few.dropped) == (("person",), ("dog",), ("car", "kangaroo"))
    with pytest.raises(DataError, match="leaves no unseen class"):
        make_class_split({"horse": 12, "person": 30}, "coco_48_17")


def test_a_split_file_without_a_rule_is_of_the_first_one() -> None:
    split = make_class_split({"a": 20, "b": 20}, "even_odd")
    raw = json.loads(split.to_json())
    assert raw.pop("rule") == "all_labels"
    assert ClassSplit.from_json(json.dumps(raw)) == split
