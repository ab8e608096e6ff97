"""Captions as text: cleaning, and masking the words of a row's own classes.

Masking makes the class-retrieval task non-lexical: 69% of fashion titles name the class's head word (SCIENCE 9).
Not tokenisation: that belongs to the text backbone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"\w+(?:['’\-]\w+)*['’]?")
_EMPTY_BRACKETS = re.compile(r"\(\s*\)|\[\s*\]|\{\s*\}")
_SPACE_BEFORE_STOP = re.compile(r"\s+([,.;:!?)\]}])")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\ufeff]+")
_EDGES = " ,.;:!?-–—/|&+"
# Words that carry no class: masking them would only damage the sentence.
_FUNCTION_WORDS = frozenset(
    ("a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "s", "t", "the", "to", "with")
)
_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "mice": "mouse",
    "wives": "wife",
}


def clean_captions(captions: Iterable[str]) -> tuple[str, ...]:
    """Strip, collapse white space and control characters, drop empty captions; order and repeats stay.

    >>> clean_captions(["  a  red\\tdress ", "", "\\n"])
    ('a red dress',)
    """
    cleaned = (" ".join(_CONTROL.sub(" ", caption).split()) for caption in captions)
    return tuple(caption for caption in cleaned if caption)


def mask_class_words(caption: str, labels: Sequence[str]) -> str:
    """Remove from a caption every word of the row's own class names; the result may be empty.

    Case does not matter, nor singular and plural. Two words are the same when they share a stem, where a word's
    stems are itself, without a possessive 's, and
    - `-ies` -> `-y` or `-ie` (puppies: puppy; movies: movie); `-ves` -> `-f`, `-fe` or `-ve` (scarves: scarf);
    - `-es` dropped after s, x, z, ch, sh and o (dresses: dress; watches: watch);
    - `-s` dropped, but not from `-ss`, `-us` and `-is` (shoes: shoe; dress, bus and tennis stay);
    - nine irregular plurals (women: woman; children: child; feet: foot ...).
    Hyphens and a space inside a compound do not matter either (Tshirts: T-shirt, T shirt; Flip Flops: flip-flop).
    Function words of a class name (and, of, for ...) are kept.

    >>> mask_class_words("Nike Men's Running Shoe, Black", ["Sports Shoes"])
    "Nike Men's Running, Black"
    """
    words = _class_stems(labels)
    if not words:
        return caption
    found = list(_WORD.finditer(caption))
    doomed = [bool(_stems(match.group()) & words) or _all_parts_in(match.group(), words) for match in found]
    for i in range(len(found) - 1):
        between = caption[found[i].end() : found[i + 1].start()]
        joined = found[i].group() + found[i + 1].group()
        if not between.strip(" -") and _stems(joined) & words:
            doomed[i] = doomed[i + 1] = True
    pieces, start = [], 0
    for match, is_doomed in zip(found, doomed, strict=True):
        if is_doomed:
            pieces.append(caption[start : match.start()])
            start = match.end()
    if not pieces:
        return caption
    return _tidy("".join([*pieces, caption[start:]]))


def _class_stems(labels: Sequence[str]) -> set[str]:
    """Stems of the words of the class names, and of each whole name written as one word."""
    stems: set[str] = set()
    for label in labels:
        parts = re.findall(r"[^\W_]+(?:['’]\w+)*", label.lower())
        content = [part for part in parts if part not in _FUNCTION_WORDS]
        for part in (*content, "".join(content)):
            stems |= _stems(part)
    return stems - {""}


def _all_parts_in(word: str, words: set[str]) -> bool:
    parts = [part for part in re.split(r"[-'’]", word) if part]
    return len(parts) > 1 and all(_stems(part) & words for part in parts)


def _stems(word: str) -> set[str]:
    word = re.sub(r"['’]s?$", "", word.lower())
    word = re.sub(r"[-'’_]", "", word)
    stems = {word, _IRREGULAR.get(word, word)}
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return stems
    stems.add(word[:-1])
    if word.endswith("ies"):
        stems.add(word[:-3] + "y")
    if word.endswith("ves"):
        stems |= {word[:-3] + "f", word[:-3] + "fe"}
    if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        stems.add(word[:-2])
    return stems


def _tidy(text: str) -> str:
    text = _EMPTY_BRACKETS.sub(" ", " ".join(text.split()))
    text = _SPACE_BEFORE_STOP.sub(r"\1", " ".join(text.split()))
    return text.strip(_EDGES)
