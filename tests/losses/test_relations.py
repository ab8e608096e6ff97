"""Relations of a batch: multi-label rules, equal contents, and that every pair of rows is related exactly once."""

from __future__ import annotations

import torch

from zscmr_ray.losses.relations import Relations, make_relations


def assert_complete(relations: Relations) -> None:
    kinds = torch.stack([relations.negative_BB, relations.weak_BB, relations.positive_BB]).int()
    assert torch.equal(kinds.sum(0), torch.ones_like(kinds[0]))
    assert torch.equal(kinds, kinds.transpose(1, 2))


def test_multi_label_rows_against_loops() -> None:
    labels = [("a", "b"), ("b",), ("c",), (), ("a", "c"), ()]
    captions = ["x", "y", "z", "x", "w", "v"]
    images = [1, 2, 3, 4, 4, 5]
    relations = make_relations(labels, images, captions)
    assert_complete(relations)
    for i in range(6):
        for j in range(6):
            pair = i == j or captions[i] == captions[j] or images[i] == images[j]
            shares = bool(set(labels[i]) & set(labels[j]))
            assert relations.positive_BB[i, j] == pair
            assert relations.weak_BB[i, j] == (shares and not pair)
            assert relations.negative_BB[i, j] == (not shares and not pair)


def test_without_labels_every_row_is_its_own_class() -> None:
    relations = make_relations(None, [1, 2, 2])
    assert_complete(relations)
    assert not relations.weak_BB.any()
    assert relations.positive_BB[1, 2]
    assert relations.negative_BB[0].tolist() == [False, True, True]


def test_one_row_and_no_row() -> None:
    assert make_relations([("a",)]).positive_BB.tolist() == [[True]]
    assert make_relations([]).negative_BB.shape == (0, 0)
    assert make_relations(None, num_rows=2).negative_BB.sum() == 2


def test_defect_10_identical_captions_are_true_pairs_not_weak_ones() -> None:
    relations = make_relations([("shoe",)] * 3, caption_keys=["black shoe", "black shoe", "red shoe"])
    assert relations.weak_BB[0].tolist() == [False, False, True]
