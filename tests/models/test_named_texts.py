"""The text half of `named`: the whitening of its equation, a name found under what varies within classes, no labels."""

from __future__ import annotations

import numpy as np
import torch

from zscmr_ray.models.alignment_statistics import side_moments
from zscmr_ray.models.named_texts import NUM_WORDINGS, NamedTexts

N, D, C = 400, 6, 4


def fitted(text_ND: np.ndarray, class_N: np.ndarray, names: list[torch.Tensor]) -> NamedTexts:
    rng = np.random.default_rng(1)
    model = NamedTexts(D, C, shares=(1.0, 1.0, 1.0, 0.0), name_temperature=0.1, teacher_temperature=1.0)
    model.fit(
        side_moments(text_ND, class_N),
        side_moments(rng.normal(size=(len(text_ND), C)), class_N),
        names,
        name_regularisation=0.1,
        taught_regularisation=1.0,
        class_share=0.5,
    )
    return model


def make_texts() -> tuple[np.ndarray, np.ndarray, list[torch.Tensor]]:
    """Texts of four classes, each with a loud nuisance along the last axis; the names are the classes' axes."""
    rng = np.random.default_rng(0)
    class_N = np.arange(N) % C
    text_ND = 0.05 * rng.normal(size=(N, D))
    text_ND[np.arange(N), class_N] += 0.3
    text_ND[:, -1] += rng.normal(size=N)
    names = torch.eye(C, D) + 0.1 * torch.arange(C)[:, None] * torch.eye(D)[-1]
    return text_ND, class_N, [torch.nn.functional.normalize(names, dim=1)] * NUM_WORDINGS


def test_the_whitening_is_the_inverse_root_of_the_ridged_covariance_within_classes() -> None:
    text_ND, class_N, names = make_texts()
    inner = text_ND - np.stack([text_ND[class_N == one].mean(0) for one in range(C)])[class_N]
    within = inner.T @ inner / (N - 1)
    root = fitted(text_ND, class_N, names).fitted["whitening"].double().numpy()
    expected = within + 0.1 * np.trace(within) / D * np.eye(D)
    np.testing.assert_allclose(root @ expected @ root, np.eye(D), atol=1e-4)


def test_a_name_is_found_under_what_varies_within_classes() -> None:
    text_ND, class_N, names = make_texts()
    centred = torch.from_numpy(text_ND - text_ND.mean(0)).float()
    found = fitted(text_ND, class_N, names)(centred).argmax(1).numpy()
    plain = (torch.nn.functional.normalize(centred, dim=1) @ (names[0] - names[0].mean(0)).T).argmax(1)
    assert (found == class_N).mean() > 0.95 > (plain.numpy() == class_N).mean()


def test_without_classes_nothing_is_whitened() -> None:
    text_ND, _, names = make_texts()
    root = fitted(text_ND, np.arange(N), names).fitted["whitening"]
    torch.testing.assert_close(root / root[0, 0], torch.eye(D))
    assert torch.isfinite(fitted(text_ND, np.arange(N), names)(torch.rand(3, D))).all()
