"""The protocol: which rows ask and are searched, held against scikit-learn on rows picked by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval.protocol import ClassGroups, condition_items, evaluate_method
from zscmr_ray.retrieval.searches import Corpus, Towers, make_search, variants

GROUPS = ClassGroups(seen=("s0", "s1"), unseen=("u0", "u1"), held_out=("h0",))
NAMES = ("s0", "s1", "u0", "u1", "h0", "dropped")


def make_corpus(num_items: int = 240, *, captions: int = 2, seed: int = 0) -> tuple[Corpus, Towers]:
    """Items of six classes with `captions` texts each, vectors that lean towards their class."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, len(NAMES), num_items)
    centre = rng.standard_normal((len(NAMES), 6))
    item_of = np.repeat(np.arange(num_items), captions)
    image = (centre[kind] + rng.standard_normal((num_items, 6))).astype(np.float32)
    text = (centre[kind[item_of]] + rng.standard_normal((len(item_of), 6))).astype(np.float32)
    corpus = Corpus(
        ids=[f"item{row}" for row in range(num_items)],
        labels=[(NAMES[one],) for one in kind],
        partition_N=rng.choice(["train", "val", "test"], num_items),
        text_item_M=item_of,
    )
    return corpus, Towers.symmetric(image, text)


def naive_map(
    corpus: Corpus, towers: Towers, *, asked: set[str], searched: set[str], by_image: bool
) -> float:
    """mAP by scikit-learn over hand-picked rows (no ties in these vectors)."""
    scores = []
    of_text = [corpus.labels[item][0] for item in corpus.text_item_M]
    part_text = [corpus.partition_N[item] for item in corpus.text_item_M]
    image_side = (towers.image_query_ND, [names[0] for names in corpus.labels], list(corpus.partition_N))
    text_side = (towers.text_query_MD, of_text, part_text)
    query, gallery = (image_side, text_side) if by_image else (text_side, image_side)
    rows = [row for row, name in enumerate(gallery[1]) if name in searched and gallery[2][row] == "train"]
    for row, name in enumerate(query[1]):
        if name in asked and query[2][row] == "test":
            right = [gallery[1][other] == name for other in rows]
            scores.append(average_precision_score(right, gallery[0][rows] @ query[0][row]))
    return float(np.mean(scores))


@pytest.mark.parametrize(
    ("condition", "asked", "searched"),
    [
        ("U|U", {"u0", "u1"}, {"u0", "u1"}),
        ("S|S", {"s0", "s1"}, {"s0", "s1"}),
        ("U|all", {"u0", "u1"}, {"s0", "s1", "u0", "u1", "h0"}),
        ("S|all", {"s0", "s1"}, {"s0", "s1", "u0", "u1", "h0"}),
    ],
)
def test_conditions_match_rows_picked_by_hand(condition: str, asked: set[str], searched: set[str]) -> None:
    corpus, towers = make_corpus()
    found = evaluate_method(towers, corpus, GROUPS, num_resamples=100)["classes"][condition]
    expected = [
        naive_map(corpus, towers, asked=asked, searched=searched, by_image=by_image)
        for by_image in (True, False)
    ]
    assert [found["image_to_text"]["map"], found["text_to_image"]["map"]] == pytest.approx(expected)
    assert found["average"]["map"] == pytest.approx(np.mean(expected))
    for name in ("image_to_text", "text_to_image", "average"):
        low, high = found[name]["interval"]
        assert low <= found[name]["map"] <= high
        assert 0 < found[name]["chance"] < found[name]["map"]
    assert set(found["image_to_text"]["per_class"]) == asked
    assert found["text_to_image"]["num_classes"] == 2


def test_harmonic_mean_is_of_the_all_galleries() -> None:
    corpus, towers = make_corpus()
    found = evaluate_method(towers, corpus, GROUPS, num_resamples=100)["classes"]
    for name in ("image_to_text", "text_to_image", "average"):
        seen, unseen = found["S|all"][name]["map"], found["U|all"][name]["map"]
        assert found["H"][name]["map"] == pytest.approx(2 * seen * unseen / (seen + unseen))
        low, high = found["H"][name]["interval"]
        assert low <= found["H"][name]["map"] <= high


def test_no_training_row_asks_and_no_test_row_is_searched() -> None:
    corpus, _ = make_corpus()
    for queries, gallery in condition_items(corpus, GROUPS).values():
        assert set(corpus.partition_N[queries]) == {"test"}
        assert set(corpus.partition_N[gallery]) == {"train"}


def test_held_out_and_dropped_classes_never_ask_and_mixed_items_take_no_part() -> None:
    labels = [("u0",), ("s0", "u0"), ("h0",), ("s0", "s1"), ("dropped",), ("s0", "dropped"), ()]
    assert GROUPS.of_items(labels).tolist() == ["U", "", "held", "S", "", "", ""]
    corpus, _ = make_corpus()
    groups = GROUPS.of_items(corpus.labels)
    for queries, _gallery in condition_items(corpus, GROUPS).values():
        assert set(groups[queries]) <= {"U", "S"}


def test_instance_retrieval_searches_the_test_rows_for_any_own_caption() -> None:
    corpus, towers = make_corpus(40)
    found = evaluate_method(towers, corpus, GROUPS, num_resamples=100)["instance"]["test"]
    test = np.flatnonzero(corpus.partition_N == "test")
    text = np.flatnonzero(np.isin(corpus.text_item_M, test))
    ranks = []
    for item in test:
        scores = towers.text_gallery_MD[text] @ towers.image_query_ND[item]
        own = scores[corpus.text_item_M[text] == item].max()
        ranks.append(1 + int((scores > own).sum()))
    assert found["image_to_text"]["recall"]["5"]["value"] == pytest.approx(np.mean(np.array(ranks) <= 5))
    assert found["image_to_text"]["median_rank"] == np.median(ranks)
    assert found["text_to_image"]["num_queries"] == len(text)
    assert found["text_to_image"]["num_gallery"] == len(test)
    low, high = found["image_to_text"]["recall"]["5"]["interval"]
    assert low <= found["image_to_text"]["recall"]["5"]["value"] <= high


def test_without_labels_there_is_instance_retrieval_only() -> None:
    corpus, towers = make_corpus(30)
    unlabelled = Corpus(corpus.ids, [()] * 30, corpus.partition_N, corpus.text_item_M)
    found = evaluate_method(towers, unlabelled, ClassGroups((), ()), num_resamples=100)
    assert found["classes"] == {}
    assert set(found["instance"]) == {"test"}


def test_a_query_whose_class_is_not_in_the_gallery_is_counted_apart() -> None:
    corpus = Corpus(
        ids=["a", "b", "c"],
        labels=[("u0",), ("u1",), ("u0",)],
        partition_N=np.array(["test", "test", "train"]),
        text_item_M=np.arange(3),
    )
    ones = np.ones((3, 2), np.float32)
    found = evaluate_method(Towers.symmetric(ones, ones), corpus, GROUPS, num_resamples=100)["classes"]["U|U"]
    assert found["image_to_text"]["num_queries"] == 1
    assert found["image_to_text"]["num_queries_without_relevant"] == 1
    assert found["image_to_text"]["map"] == 1.0


def test_an_item_without_captions_and_an_empty_corpus() -> None:
    corpus = Corpus(["a", "b"], [("u0",), ("u0",)], np.array(["test", "train"]), np.array([0]))
    ones = np.ones((2, 1), np.float32)
    found = evaluate_method(Towers.symmetric(ones, ones[:1]), corpus, GROUPS, num_resamples=100)["classes"]
    assert np.isnan(found["U|U"]["image_to_text"]["map"])  # no caption in the gallery
    assert found["U|U"]["text_to_image"]["map"] == 1.0
    empty = Corpus([], [], np.zeros(0, "U5"), np.zeros(0, np.int64))
    nothing = evaluate_method(Towers.symmetric(ones[:0], ones[:0]), empty, GROUPS, num_resamples=100)
    assert nothing == {"classes": {}, "instance": {}}


def test_rows_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(DataError, match="not of the same items"):
        Corpus(["a"], [], np.array(["test"]), np.array([0]))
    with pytest.raises(DataError, match="not of the same items"):
        Corpus(["a"], [()], np.array(["test"]), np.array([1]))


def test_variants_weigh_the_query_only() -> None:
    blocks = [SimpleNamespace(name="region", start=0, stop=2), SimpleNamespace(name="label", start=2, stop=5)]
    image, text = np.ones((3, 5), np.float32), np.full((4, 5), 2.0, np.float32)
    found = variants(image, text, blocks, label_weight=0.25)
    assert list(found) == ["regions", "labels", "both"]
    assert found["regions"].image_gallery_ND.shape == (3, 2)
    assert found["both"].image_query_ND[0].tolist() == [0.75, 0.75, 0.25, 0.25, 0.25]
    assert found["both"].text_gallery_MD is text
    assert list(variants(image, text, blocks[:1], label_weight=0.25)) == ["regions"]


def test_searches_name_captions_by_item_and_number() -> None:
    corpus, towers = make_corpus(6, captions=3)
    found = make_search(
        towers, corpus, query_items=np.array([1]), gallery_items=np.array([4, 5]), direction="image_to_text"
    )
    assert found.gallery_ids == [f"item{item}#{number}" for item in (4, 5) for number in range(3)]
    assert found.gallery_items_N.tolist() == [4, 4, 4, 5, 5, 5]
