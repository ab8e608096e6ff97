"""ConSE against two nested loops, and its degenerate cases."""

from __future__ import annotations

import pytest
import torch

from zscmr_ray.errors import ConfigError
from zscmr_ray.models.backbones import load_text_backbone
from zscmr_ray.models.conse import ConSE, class_name_vectors


def unit(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    )


def test_an_image_is_the_weighted_mean_of_its_likely_classes() -> None:
    classes, logits = unit(7, 5), torch.randn(4, 7, generator=torch.Generator().manual_seed(1)) * 3
    got = ConSE(classes, top_t=3).image(logits)
    for n in range(4):
        exps = [float(torch.exp(logits[n, c])) for c in range(7)]
        best = sorted(range(7), key=lambda c: -exps[c])[:3]
        want = torch.zeros(5)
        for c in best:
            want += exps[c] / sum(exps) * classes[c]
        torch.testing.assert_close(got[n], want / want.norm(), rtol=1e-5, atol=1e-6)


def test_one_class_is_that_class_and_t_is_cut_to_the_classes() -> None:
    classes = unit(3, 4)
    sure = torch.tensor([[0.0, 50.0, 0.0]])
    torch.testing.assert_close(ConSE(classes, top_t=1).image(sure)[0], classes[1])
    torch.testing.assert_close(ConSE(classes, top_t=99).image(sure)[0], classes[1])
    assert ConSE(classes).image(torch.zeros(0, 3)).shape == (0, 4)


def test_half_precision_logits_are_read_in_float32() -> None:
    classes, logits = unit(5, 4), torch.randn(2, 5, generator=torch.Generator().manual_seed(2)).half()
    torch.testing.assert_close(ConSE(classes).image(logits), ConSE(classes).image(logits.float()))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="T >= 1"):
        ConSE(unit(3, 4), top_t=0)
    with pytest.raises(ConfigError, match="needs classes"):
        ConSE(torch.zeros(0, 4))
    with pytest.raises(AssertionError, match="4 logits for 3 classes"):
        ConSE(unit(3, 4)).image(torch.zeros(1, 4))


def test_a_class_is_named_by_all_its_synonyms() -> None:
    backbone = load_text_backbone("tiny")
    names = ["tench, Tinca tinca", "hammerhead, hammerhead shark"]
    vectors = class_name_vectors(backbone, names)
    assert torch.equal(vectors, backbone.sentence_BD(backbone(names)))
    assert not torch.allclose(vectors, backbone.sentence_BD(backbone(["tench", "hammerhead"])))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
