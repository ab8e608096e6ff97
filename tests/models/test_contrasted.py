"""The towers of `best`: they align what shares a latent, the same bytes for a seed, no gradient left, any number of rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from zscmr_ray.losses.contrast import info_nce
from zscmr_ray.losses.relations import make_relations
from zscmr_ray.models.alignment_statistics import PairRows
from zscmr_ray.models.contrasted import Contrasted, ContrastedSettings, contrast

F, D, CLASSES = 12, 8, 5
SETTINGS = ContrastedSettings(F, D, width=16, batch_rows=20)


def make_rows(num: int) -> PairRows:
    rng = np.random.default_rng(0)
    class_N = np.arange(num) % CLASSES
    latent = rng.normal(size=(CLASSES, 4))[class_N] + 0.3 * rng.normal(size=(num, 4))
    image, text = latent @ rng.normal(size=(4, F)), latent @ rng.normal(size=(4, D))
    sides = [(side - side.mean(0)).astype(np.float32) for side in (image, text)]
    return PairRows(*sides, class_N)


def fitted(num: int, settings: ContrastedSettings = SETTINGS) -> Contrasted:
    rows = make_rows(num)
    model = Contrasted(settings)
    model.fit(rows, torch.from_numpy(rows.image_NF), torch.from_numpy(rows.text_ND), epochs=10)
    return model


def test_what_shares_a_latent_comes_together() -> None:
    rows, model = make_rows(200), fitted(200)
    image, text = model.image(torch.from_numpy(rows.image_NF)), model.text(torch.from_numpy(rows.text_ND))
    torch.testing.assert_close(image.norm(dim=1), torch.ones(200))
    found = rows.class_N[(image @ text.T).argmax(1).numpy()]
    assert (found == rows.class_N).mean() > 0.7  # 5 classes


def test_a_seed_gives_the_same_bytes_and_leaves_no_gradient() -> None:
    one, again, other = fitted(50), fitted(50), fitted(50, replace(SETTINGS, seed=1))
    for name, value in one.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    first = "text_nets.0.0.weight"
    assert not torch.equal(other.state_dict()[first], one.state_dict()[first])
    assert not any(parameter.requires_grad for parameter in one.parameters())


def test_the_pairs_are_those_of_single_seeds_and_an_inner_product_is_the_mean_of_their_cosines() -> None:
    rows, model = make_rows(60), fitted(60)
    image, text = torch.from_numpy(rows.image_NF), torch.from_numpy(rows.text_ND)
    singles = [fitted(60, replace(SETTINGS, num_pairs=1, seed=seed)) for seed in range(SETTINGS.num_pairs)]
    cosines = torch.stack([one.image(image) @ one.text(text).T for one in singles])
    torch.testing.assert_close(model.image(image) @ model.text(text).T, cosines.mean(0))
    torch.testing.assert_close(model.image(image).norm(dim=1), torch.ones(60))


@pytest.mark.parametrize("num", [3, 21])
def test_few_rows_and_a_rest_of_one_are_fitted(num: int) -> None:
    assert all(torch.isfinite(parameter).all() for parameter in fitted(num).parameters())


def test_the_loss_is_half_supcon_half_infonce() -> None:
    class_B = torch.tensor([0, 1, 0, 2])
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    relations = make_relations([(str(one),) for one in class_B.tolist()])
    expected = (info_nce(logits, relations, same_class="positive") + info_nce(logits, relations)) / 2
    torch.testing.assert_close(contrast(logits, class_B), expected)
    loops = 0.0
    for query in (functional.log_softmax(logits, 1), functional.log_softmax(logits.T, 1)):
        for row in range(4):
            same = [column for column in range(4) if class_B[column] == class_B[row]]
            loops -= float(sum(query[row, column] for column in same) / len(same) + query[row, row])
    assert float(expected) == pytest.approx(loops / 16, abs=1e-6)
