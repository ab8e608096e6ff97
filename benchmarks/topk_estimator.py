"""The error of the perturbed top-k's gradient against the number of samples n: plain, centred and antithetic estimators.

    plain        1/(n sigma) sum_i <v, W_i> z_i
    centred      1/((n-1) sigma) sum_i (<v, W_i> - mean) z_i                 what models/topk.py computes
    antithetic   1/(n sigma) sum_{i <= n/2} (<v, W(z_i)> - <v, W(-z_i)>) z_i   n selections from n/2 draws

Error = root mean square over repeats and over gradients v = dL/dW of |estimate - truth| / |truth|; the truth is a mean over
REFERENCE_PAIRS antithetic pairs. v is normal around `offset`: every W sums to k, so that an offset changes no gradient, and
only a plain estimator's error. Scores are normal with standard deviation `spread`; sigma is .05. `ours` is the project's
operator at its default n, on rows that differ in their noise only: it has to lie on the centred line.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch
from contract import report

from zscmr_ray.config import Config
from zscmr_ray.models.noise import RowNoise
from zscmr_ray.models.topk import perturbed_topk

SEED, SIGMA = 0, 0.05
SHAPES = {"49 regions, k 5": (49, 5), "12 tokens, k 2": (12, 2), "500 tokens, k 50": (500, 50)}
SPREADS, OFFSETS = (0.02, 0.1), (0.0, 1.0)
NUMS = (50, 100, 250, 500, 1000, 2000)
NUM_GRADIENTS, REPEATS, REFERENCE_PAIRS = 4, 60, 200_000
ESTIMATORS = ("plain", "centred", "antithetic")
BAR = 1.0

Floats = npt.NDArray[np.float32]
Errors = dict[str, dict[int, float]]


def main() -> None:
    """Measure every case, print the table, and report plain's error over that of the estimator in use."""
    default = Config().model.num_noise_samples
    cases: dict[str, dict[str, object]] = {}
    ratios, agreements = [], []
    for (name, (length, k)), spread, offset in itertools.product(SHAPES.items(), SPREADS, OFFSETS):
        case = f"{name}, spread {spread:g}, offset {offset:g}"
        scores_L, gradients_LM = make_case(length, spread, offset)
        truth_LM = reference(scores_L, gradients_LM, k)
        errors = measure(scores_L, gradients_LM, k, truth_LM)
        own = own_error(scores_L, gradients_LM, k, truth_LM, num_samples=default)
        ratios.append(at(errors["plain"], default) / own)
        agreements.append(own / at(errors["centred"], default))
        cases[case] = {name: rounded(found) for name, found in errors.items()} | {"ours": round(own, 3)}
        print_case(case, errors, own, default)
    agrees = max(abs(np.log(agreements))) < 0.25
    report(
        name="topk_estimator",
        value=float(np.exp(np.mean(np.log(ratios)))),
        bar=BAR,
        holds=bool(np.mean(np.log(ratios)) >= 0 and agrees),
        unit=f"error of the plain estimator / error of the operator's, n = {default}, geometric mean of the cases",
        detail={"default_n": default, "cases": cases, "ours_over_centred": [round(x, 3) for x in agreements]},
        seed=SEED,
    )


def make_case(length: int, spread: float, offset: float) -> tuple[Floats, Floats]:
    """Scores [L] and gradients dL/dW [L, M]; the same for both offsets but for the offset."""
    rng = np.random.default_rng(SEED)
    scores_L = 0.5 + spread * rng.standard_normal(length)
    gradients_LM = rng.standard_normal((length, NUM_GRADIENTS)) + offset
    return scores_L.astype(np.float32), gradients_LM.astype(np.float32)


def chosen(scores_L: Floats, noise_SL: Floats, k: int) -> Floats:
    """The k-hot selections [S, L] under noise."""
    noisy_SL = scores_L + np.float32(SIGMA) * noise_SL
    place = len(scores_L) - k
    return (noisy_SL >= np.partition(noisy_SL, place, axis=1)[:, place, None]).astype(np.float32)


def reference(scores_L: Floats, gradients_LM: Floats, k: int) -> Floats:
    """The gradients [L, M] as the mean over many antithetic pairs."""
    rng = np.random.default_rng(SEED + 1)
    sums_LM = np.zeros_like(gradients_LM, np.float64)
    step = max(1, 2_000_000 // len(scores_L))
    for start in range(0, REFERENCE_PAIRS, step):
        size = (min(step, REFERENCE_PAIRS - start), len(scores_L))
        noise_SL = rng.standard_normal(size, dtype=np.float32)
        difference_SL = chosen(scores_L, noise_SL, k) - chosen(scores_L, -noise_SL, k)
        sums_LM += noise_SL.T @ (difference_SL @ gradients_LM)
    return (sums_LM / (2 * REFERENCE_PAIRS * SIGMA)).astype(np.float32)


def estimates(noise_SL: Floats, plus_SM: Floats, minus_SM: Floats, num: int) -> dict[str, Floats]:
    """Every estimator's gradient [L, M] from the first `num` selections it may use."""
    z_SL, plus, half = noise_SL[:num], plus_SM[:num], num // 2
    return {
        "plain": z_SL.T @ plus / (num * SIGMA),
        "centred": z_SL.T @ (plus - plus.mean(0)) / ((num - 1) * SIGMA),
        "antithetic": z_SL[:half].T @ (plus[:half] - minus_SM[:half]) / (2 * half * SIGMA),
    }


def measure(scores_L: Floats, gradients_LM: Floats, k: int, truth_LM: Floats) -> Errors:
    """The relative error of every estimator at every n."""
    squares = {name: dict.fromkeys(NUMS, 0.0) for name in ESTIMATORS}
    for repeat in range(REPEATS):
        rng = np.random.default_rng([SEED + 2, repeat])
        noise_SL = rng.standard_normal((max(NUMS), len(scores_L)), dtype=np.float32)
        plus_SM = chosen(scores_L, noise_SL, k) @ gradients_LM
        minus_SM = chosen(scores_L, -noise_SL, k) @ gradients_LM
        for num in NUMS:
            for name, found_LM in estimates(noise_SL, plus_SM, minus_SM, num).items():
                squares[name][num] += float(((found_LM - truth_LM) ** 2).sum())
    total = REPEATS * float((truth_LM**2).sum())
    return {
        name: {num: (one / total) ** 0.5 for num, one in found.items()} for name, found in squares.items()
    }


def own_error(scores_L: Floats, gradients_LM: Floats, k: int, truth_LM: Floats, *, num_samples: int) -> float:
    """The relative error of the project's operator, a row a repeat."""
    square = 0.0
    for column in range(NUM_GRADIENTS):
        scores_BL = torch.from_numpy(scores_L).repeat(REPEATS, 1).requires_grad_()
        weights_BL = perturbed_topk(
            scores_BL,
            lengths_B=torch.full((REPEATS,), len(scores_L)),
            k_B=torch.full((REPEATS,), k),
            noise=RowNoise(SEED, column, torch.arange(REPEATS)),
            site="study",
            num_samples=num_samples,
            sigma=SIGMA,
        )
        (weights_BL * torch.from_numpy(gradients_LM[:, column])).sum().backward()  # type: ignore[no-untyped-call]
        assert scores_BL.grad is not None
        square += float(((scores_BL.grad.numpy() - truth_LM[:, column]) ** 2).sum())
    return float((square / (REPEATS * float((truth_LM**2).sum()))) ** 0.5)


def at(errors: dict[int, float], num: int) -> float:
    """The error at any n: it falls as one over the root."""
    nearest = min(errors, key=lambda known: abs(np.log(known / num)))
    return float(errors[nearest] * (nearest / num) ** 0.5)


def rounded(errors: dict[int, float]) -> dict[str, float]:
    """By n as text, for JSON."""
    return {str(num): round(error, 3) for num, error in errors.items()}


def print_case(case: str, errors: Errors, own: float, default: int) -> None:
    """One block of the table."""
    print(f"{case}: ours at n = {default}: {own:.3f}")
    print("  n          " + "".join(f"{num:>8}" for num in NUMS))
    for name, found in errors.items():
        print(f"  {name:<11}" + "".join(f"{found[num]:>8.3f}" for num in NUMS))


if __name__ == "__main__":
    main()
