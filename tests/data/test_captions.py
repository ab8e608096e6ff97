"""Cleaning captions and masking the words of a row's own classes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zscmr_ray.data.captions import clean_captions, mask_class_words


def test_cleaning() -> None:
    raw = ["  two\t words\n", "", " \u00a0\u3000", "\ufeffx\x00y", "same", "same", "a\u200db"]
    assert clean_captions(raw) == ("two words", "x y", "same", "same", "a\u200db")


@given(st.lists(st.text()))
def test_cleaning_twice_is_cleaning_once(captions: list[str]) -> None:
    once = clean_captions(captions)
    assert clean_captions(once) == once and all(caption.strip() for caption in once)


@pytest.mark.parametrize(
    ("caption", "label", "expected"),
    [
        ("Puma Men's Massa Black T-shirt", "Tshirts", "Puma Men's Massa Black"),
        ("Puma T Shirt red", "Tshirts", "Puma red"),
        ("Nike Men Navy SHOE", "Sports Shoes", "Nike Men Navy"),
        ("Disney Kids Mickey Mouse Yellow Flip Flops", "Flip Flops", "Disney Kids Mickey Mouse Yellow"),
        ("Flip-Flop for men", "Flip Flops", "for men"),
        ("Sweat Shirt, grey", "Sweatshirts", "grey"),
        ("hand bag blue", "Handbags", "blue"),
        ("Dress (dresses) in red", "Dresses", "in red"),
        ("one scarf, two scarves", "Scarves", "one, two"),
        ("Titan Watch", "Watches", "Titan"),
        ("Perfume and Body Mist 100ml", "Perfume and Body Mist", "and 100ml"),
        ("women's jeans for a woman", "Women", "jeans for a"),
        ("puppies and a puppy", "puppy", "and a"),
        ("a movie about knives", "Movies", "a about knives"),
        ("a knife", "Knives", "a"),
        ("the bus among buses", "bus", "the among"),
        ("Café crème", "café", "crème"),
        ("face with smiling eyes", "face-smiling", "with eyes"),
    ],
)
def test_class_words_are_removed(caption: str, label: str, expected: str) -> None:
    assert mask_class_words(caption, [label]) == expected


@pytest.mark.parametrize(
    ("caption", "label"),
    [
        ("capes and capers", "Caps"),
        ("watchmaker", "Watches"),
        ("the glassy sea", "Glass"),
        ("tennis", "Ten"),
        ("a  double  space stays", "shoes"),
        ("shorts are no shirts", "Skirts"),
        ("", "x"),
    ],
)
def test_other_words_stay_and_so_does_the_caption(caption: str, label: str) -> None:
    assert mask_class_words(caption, [label]) == caption


def test_a_caption_of_class_words_only_becomes_empty_and_no_labels_change_nothing() -> None:
    assert mask_class_words("Mobile Pouches!", ["Mobile Pouch"]) == ""
    assert mask_class_words("Mobile Pouches!", []) == "Mobile Pouches!"
    assert mask_class_words("red cat, blue dog", ["cats", "dogs"]) == "red, blue"
    assert mask_class_words("plain words", ["", "&", "of the"]) == "plain words"


@given(st.text(max_size=60), st.lists(st.text(max_size=20), max_size=3))
def test_masking_never_fails_or_adds(caption: str, labels: list[str]) -> None:
    once = mask_class_words(caption, labels)
    assert len(once) <= len(caption)
