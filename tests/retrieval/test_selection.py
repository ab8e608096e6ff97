"""Fusion weights: the grid against the protocol, and blindness to everything that is not pseudo-unseen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from zscmr_ray.errors import DataError
from zscmr_ray.retrieval.metrics import ranking_metrics
from zscmr_ray.retrieval.relevance import Relevance
from zscmr_ray.retrieval.scoring import label_block
from zscmr_ray.retrieval.searches import Corpus
from zscmr_ray.retrieval.selection import HeadOutputs, select_fusion, selection_rows


def make_heads(seed: int = 0, *, num_items: int = 120) -> tuple[HeadOutputs, Corpus]:
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, num_items)
    item_of = np.repeat(np.arange(num_items), 2)
    centres, tops = rng.standard_normal((4, 8)), 3 * rng.standard_normal((4, 5))

    def unit(values: np.ndarray) -> np.ndarray:
        return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)

    def near(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return (table[rows] + 3 * rng.standard_normal((len(rows), table.shape[1]))).astype(np.float32)

    heads = HeadOutputs(
        unit(near(centres, kind)),
        unit(near(centres, kind[item_of])),
        near(tops, kind),
        near(tops, kind[item_of]),
    )
    labels = [(("p0", "p1", "s0", "u0")[one],) for one in kind]
    corpus = Corpus(
        [f"i{row}" for row in range(num_items)],
        labels,
        rng.choice(["train", "val", "test"], num_items),
        item_of,
    )
    return heads, corpus


def test_the_table_is_the_map_of_the_fused_scores() -> None:
    heads, corpus = make_heads()
    choice = select_fusion(
        heads, corpus, pseudo_unseen=("p0", "p1"), label_weights=(0.0, 0.4), label_temperatures=(0.5, 2.0)
    )
    assert len(choice.table) == 3  # weight 0 once
    held = np.array([names[0] in ("p0", "p1") for names in corpus.labels])
    queries = np.flatnonzero(held & (corpus.partition_N != "train"))
    gallery = np.flatnonzero(held & (corpus.partition_N == "train"))
    is_p0 = np.array([names == ("p0",) for names in corpus.labels])
    text_q = np.flatnonzero(np.isin(corpus.text_item_M, queries))
    text_g = np.flatnonzero(np.isin(corpus.text_item_M, gallery))
    for row in choice.table:
        weight, tau = row["label_weight"], row["label_temperature"]
        assert heads.image_logits_NC is not None and heads.text_logits_MC is not None
        image = [
            (1 - weight) * heads.image_regions_ND,
            label_block(heads.image_logits_NC, label_temperature=tau),
        ]
        text = [heads.text_regions_MD, weight * label_block(heads.text_logits_MC, label_temperature=tau)]
        image_ND, text_MD = np.concatenate(image, 1), np.concatenate(text, 1)
        scores = []
        for query, found, q_items, g_items, names in (
            (image_ND[queries], text_MD[text_g], queries, corpus.text_item_M[text_g], corpus.text_ids()),
            (text_MD[text_q], image_ND[gallery], corpus.text_item_M[text_q], gallery, list(corpus.ids)),
        ):
            both = [np.stack([is_p0[items], ~is_p0[items]], 1) for items in (q_items, g_items)]
            ids = [names[one] for one in (text_g if len(names) > 120 else gallery)]
            ranked = ranking_metrics(query, found, relevance=Relevance(both[0], both[1]), gallery_ids=ids)
            scores.append(ranked.mean_average_precision)
        assert row["map"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert choice.score == max(row["map"] for row in choice.table)
    assert choice.score > choice.chance
    assert choice.rows == "pseudo-unseen"
    assert choice.num_queries == len(queries) + len(text_q)


def test_rows_of_other_classes_cannot_change_the_choice() -> None:
    heads, corpus = make_heads(1)
    choice = select_fusion(heads, corpus, pseudo_unseen=("p0", "p1"))
    other = np.array([names[0] in ("s0", "u0") for names in corpus.labels])
    image, text = heads.image_regions_ND.copy(), heads.text_regions_MD.copy()
    image[other] = 7.0
    text[other[corpus.text_item_M]] = np.nan
    poisoned = replace(heads, image_regions_ND=image, text_regions_MD=text)
    assert select_fusion(poisoned, corpus, pseudo_unseen=("p0", "p1")) == choice


def test_uninformative_labels_get_no_weight_and_informative_ones_some() -> None:
    heads, corpus = make_heads(2)
    kind = np.array([("p0", "p1", "s0", "u0").index(names[0]) for names in corpus.labels])
    exact = 20 * np.eye(4, dtype=np.float32)
    constant = replace(
        heads, image_logits_NC=np.zeros((120, 4), np.float32), text_logits_MC=np.zeros((240, 4), np.float32)
    )
    told = replace(heads, image_logits_NC=exact[kind], text_logits_MC=exact[kind[corpus.text_item_M]])
    assert select_fusion(constant, corpus, pseudo_unseen=("p0", "p1")).label_weight == 0.0
    best = select_fusion(told, corpus, pseudo_unseen=("p0", "p1"))
    assert best.label_weight > 0
    assert best.score == pytest.approx(1.0)


def test_without_logits_the_weight_is_zero_and_without_labels_val_rows_decide() -> None:
    heads, corpus = make_heads(3)
    plain = replace(heads, image_logits_NC=None, text_logits_MC=None)
    choice = select_fusion(plain, corpus, pseudo_unseen=("p0",))
    assert (choice.label_weight, len(choice.table)) == (0.0, 1)
    unlabelled = Corpus(corpus.ids, [()] * 120, corpus.partition_N, corpus.text_item_M)
    by_item = select_fusion(heads, unlabelled, pseudo_unseen=())
    assert by_item.rows == "val"
    assert by_item.num_queries == 3 * (corpus.partition_N == "val").sum()
    assert by_item.to_json()["table"][0] == {
        "label_weight": 0.0,
        "label_temperature": 1.0,
        "map": pytest.approx(by_item.table[0]["map"]),
    }


def test_nothing_to_select_on_is_an_error() -> None:
    heads, corpus = make_heads(4)
    with pytest.raises(DataError, match="no rows to validate on"):
        select_fusion(heads, corpus, pseudo_unseen=("absent",))
    trained = Corpus(corpus.ids, [()] * 120, np.full(120, "train"), corpus.text_item_M)
    with pytest.raises(DataError, match="no rows to validate on"):
        select_fusion(heads, trained, pseudo_unseen=())


def test_at_most_so_many_items_ask_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, corpus = make_heads(5)
    monkeypatch.setattr("zscmr_ray.retrieval.selection.MAX_QUERY_ITEMS", 7)
    queries, gallery, _ = selection_rows(corpus, ("p0", "p1"))
    assert len(queries) == 7 < len(gallery)
    order = np.random.default_rng(0).permutation(120)
    shuffled = Corpus(
        [corpus.ids[row] for row in order],
        [corpus.labels[row] for row in order],
        corpus.partition_N[order],
        np.repeat(np.arange(120), 2),
    )
    again, _, _ = selection_rows(shuffled, ("p0", "p1"))
    assert {corpus.ids[row] for row in queries} == {shuffled.ids[row] for row in again}
    assert select_fusion(heads, corpus, pseudo_unseen=("p0", "p1")).num_queries == 7 * 3
