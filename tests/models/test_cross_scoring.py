"""Pair scores in blocks and of shortlists equal the dense form; what is kept per row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.models.test_imfa import LENGTHS, NUM_ROWS, features, model
from zscmr_ray.models.base import SideOutput
from zscmr_ray.models.cross_scoring import cross_scores, join_pairs, keep_pairs, shortlist_scores, take_pairs
from zscmr_ray.models.imfa import Inn


def kept(inn: Inn, dtype: torch.dtype = torch.float32) -> tuple[SideOutput, SideOutput]:
    regions, tokens = features()
    with torch.inference_mode():
        images = [inn.encode_image(regions[rows]) for rows in (slice(0, 2), slice(2, 5))]
        texts = [inn.encode_text(tokens[rows], LENGTHS[rows]) for rows in (slice(0, 4), slice(4, 5))]
    image, text = ([keep_pairs(part, dtype=dtype) for part in parts] for parts in (images, texts))
    return join_pairs(image), join_pairs(text)


def dense(inn: Inn) -> np.ndarray:
    regions, tokens = features()
    with torch.inference_mode():
        return inn.score_pairs(inn.encode_image(regions), inn.encode_text(tokens, LENGTHS)).numpy()


@pytest.mark.parametrize("block_images", [1, 2, 64])
def test_blocks_equal_the_dense_form(block_images: int) -> None:
    inn = model().eval()
    inn.pairs.chunk_entries = 30
    image_rows, text_rows = np.array([4, 0, 1]), np.array([2, 3])
    found = cross_scores(
        inn, *kept(inn), image_rows=image_rows, text_rows=text_rows, block_images=block_images
    )
    np.testing.assert_allclose(found, dense(inn)[np.ix_(image_rows, text_rows)], atol=1e-6)


def test_shortlists_equal_the_dense_form() -> None:
    inn = model(fusion="concat").eval()
    image, text = kept(inn)
    queries, shortlist = np.array([3, 1]), np.array([[0, 2, 4], [4, 3, 1]])
    by_image = shortlist_scores(inn, image, text, query_rows_Q=queries, shortlist_QK=shortlist, asks="image")
    by_text = shortlist_scores(inn, text, image, query_rows_Q=queries, shortlist_QK=shortlist, asks="text")
    scores = dense(inn)
    for place, query in enumerate(queries):
        np.testing.assert_allclose(by_image[place], scores[query, shortlist[place]], atol=1e-6)
        np.testing.assert_allclose(by_text[place], scores[shortlist[place], query], atol=1e-6)


def test_half_precision_is_what_is_kept() -> None:
    inn = model().eval()
    image, text = kept(inn, torch.float16)
    assert set(image.pair_tensors()) == {"region_BD", "regions_BRD", "keys_BRA"}
    assert all(value.dtype == torch.float16 for value in image.pair_tensors().values())
    assert all(
        value.dtype == torch.float32 for value in take_pairs(text, np.array([1])).pair_tensors().values()
    )
    everything = np.arange(NUM_ROWS)
    found = cross_scores(inn, image, text, image_rows=everything, text_rows=everything)
    np.testing.assert_allclose(found, dense(inn), atol=5e-3)


def test_methods_without_pair_scores_say_so() -> None:
    inn = model(attention="self").eval()
    with pytest.raises(AssertionError, match="by vectors"):
        cross_scores(inn, SideOutput(), SideOutput(), image_rows=np.zeros(1, int), text_rows=np.zeros(1, int))
