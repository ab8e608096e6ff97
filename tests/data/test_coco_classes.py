"""COCO's classes in captions, and the two published class splits exactly."""

from __future__ import annotations

from collections import Counter

import pytest

from zscmr_ray.data.coco_classes import (
    NEITHER_15,
    UNSEEN_15,
    UNSEEN_17,
    caption_classes,
    class_words,
    classes_named,
    coco_seen,
    name_matcher,
)


def test_the_splits_are_the_published_ones() -> None:
    names = set(class_words())
    assert len(names) == 80
    assert len(UNSEEN_17) == 17 and len(NEITHER_15) == 15 and len(UNSEEN_15) == 15
    assert {*UNSEEN_17, *NEITHER_15, *UNSEEN_15} <= names
    assert not set(UNSEEN_17) & set(NEITHER_15)
    assert len(coco_seen(UNSEEN_17)) == 48
    assert len(coco_seen(UNSEEN_15)) == 65
    assert list(class_words())[:3] == ["person", "bicycle", "car"] and list(class_words())[-1] == "toothbrush"


def test_no_word_stands_for_two_classes() -> None:
    counts = Counter(word for words in class_words().values() for word in set(words))
    assert [word for word, count in counts.items() if count > 1] == []


@pytest.mark.parametrize(
    ("caption", "classes"),
    [
        ("A dog.", {"dog"}),
        ("dogs", {"dog"}),
        ("The DOG's bowl", {"dog", "bowl"}),
        ("a doghouse and dogma", set()),
        ("hot dogs and a hot-dog", {"hot dog"}),
        ("a teddy  bear, then a bear", {"teddy bear", "bear"}),
        ("buses, benches, knives and sandwiches", {"bus", "bench", "knife", "sandwich"}),
        ("two ponies and three babies", {"horse", "person"}),
        ("a category of scarce catalogues", set()),
        ("waiting at the bus stop", set()),
        ("a bus at the bus stop", {"bus"}),
        ("an orange shirt", set()),
        ("a black-and-white-cat", {"cat"}),
        ("mice", {"mouse"}),
        ("", set()),
    ],
)
def test_names_are_whole_words_singular_or_plural(caption: str, classes: set[str]) -> None:
    assert classes_named(caption) == classes


def test_every_name_and_its_plural_is_found() -> None:
    for name in class_words():
        assert name in classes_named(f"it is a {name}, really"), name
        assert name_matcher((name,)).named(f"some {name}s") == {name} or name[-1] in "shxyf", name


def test_what_captions_must_not_name_is_matched_more_widely() -> None:
    assert name_matcher(("bus",)).named("waiting at the bus stop") == {"bus"}
    assert name_matcher(("dog",)).named("a hot dog") == frozenset()
    assert name_matcher(("red panda", "dog")).named("Red pandas meet a puppy and a cat") == {
        "red panda",
        "dog",
    }


def test_a_class_needs_two_captions_and_people_lose_ties() -> None:
    assert caption_classes(["a man with a dog", "a dog", "a man"]) == ("dog", "person")
    assert caption_classes(["a man with a dog", "a man", "someone"]) == ("person",)
    assert caption_classes(["a cat", "a bird"]) == ()
    assert caption_classes(["a cat"], min_captions=1) == ("cat",)
