"""The kernel over tokens: what it stands for, which tokens become landmarks, and what does not matter."""

from __future__ import annotations

import torch
from torch.nn import functional

from zscmr_ray.models.token_kernel import TokenKernel

D, WIDTH = 6, 0.3


def make_tokens(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, D, generator=torch.Generator().manual_seed(seed))


def fitted(tokens_TD: torch.Tensor, num_landmarks: int, seed: int = 0) -> TokenKernel:
    kernel = TokenKernel(D, num_landmarks=num_landmarks, width=WIDTH)
    kernel.fit(tokens_TD, seed=seed)
    return kernel


def test_inner_products_are_the_mean_kernel_over_pairs_of_tokens() -> None:
    """With a landmark for every token that is asked about Nystroem is exact but for its ridge."""
    tokens_TD = make_tokens(20)
    kernel = fitted(tokens_TD, num_landmarks=20)
    texts_BLD, lengths_B = tokens_TD.reshape(4, 5, D), torch.tensor([5, 3, 5, 1])
    found_BB = kernel(texts_BLD, lengths_B) @ kernel(texts_BLD, lengths_B).T
    unit_BLD = functional.normalize(texts_BLD - tokens_TD.mean(0), dim=2)
    for one, rows in enumerate(unit_BLD):
        for other, columns in enumerate(unit_BLD):
            cosines = rows[: lengths_B[one]] @ columns[: lengths_B[other]].T
            expected = torch.exp((cosines - 1) / WIDTH).mean()
            torch.testing.assert_close(found_BB[one, other], expected, atol=2e-3, rtol=0)


def test_a_rare_word_gets_a_landmark() -> None:
    """Fails if landmarks are drawn alike from all tokens: one in a thousand would then have one in fifty cases."""
    rare = torch.zeros(D)
    rare[0] = 10.0
    common = make_tokens(4, seed=1).repeat(250, 1) + 0.01 * make_tokens(1000)
    tokens_TD = torch.cat([common, rare[None]])
    for seed in range(5):
        kernel = fitted(tokens_TD, num_landmarks=20, seed=seed)
        unit_D = functional.normalize(rare - tokens_TD.mean(0), dim=0)
        assert (kernel.fitted["landmarks"] @ unit_D).max() > 0.999


def test_what_lies_in_the_padding_does_not_matter() -> None:
    kernel, texts_BLD = fitted(make_tokens(30), 8), make_tokens(10).reshape(2, 5, D)
    other_BLD, lengths_B = texts_BLD.clone(), torch.tensor([5, 2])
    other_BLD[1, 2:] = torch.nan
    torch.testing.assert_close(kernel(other_BLD, lengths_B), kernel(texts_BLD, lengths_B))


def test_fewer_tokens_than_landmarks_leave_columns_empty_and_equal_ones_do_no_harm() -> None:
    tokens_TD = make_tokens(3)
    for times in (1, 4):
        kernel = fitted(tokens_TD.repeat(times, 1), num_landmarks=20)
        found_BK = kernel(tokens_TD[:, None], torch.ones(3, dtype=torch.int64))
        assert torch.isfinite(found_BK).all()
        assert not found_BK[:, 3 * times :].any()
        torch.testing.assert_close(found_BK.norm(dim=1), torch.ones(3), atol=1e-3, rtol=0)
    # One token alone, or tokens that are all alike, are at the mean: no direction, and no failure.
    assert torch.isfinite(fitted(torch.ones(5, D), 4)(torch.ones(1, 2, D), torch.tensor([2]))).all()


def test_the_same_seed_draws_the_same_landmarks() -> None:
    tokens_TD = make_tokens(200)
    one, two, other = (fitted(tokens_TD, 16, seed) for seed in (3, 3, 4))
    assert torch.equal(one.fitted["landmarks"], two.fitted["landmarks"])
    assert not torch.equal(one.fitted["landmarks"], other.fitted["landmarks"])
