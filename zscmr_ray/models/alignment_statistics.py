"""Second moments of training pairs, with the rows of one class as positives of each other, and what is solved from them.

With x, y the image and text features of N training pairs, centred, x_c, y_c their class means, n_c the class sizes:

    C_xx = cov(x),  C_yy = cov(y),  W_xx, W_yy the covariances within classes
    C_xy = (1 - a) cov(x, y) + a sum_c n_c x_c' y_c / (N - 1)      a = 0: each item with its own caption only

What it is: the moments, a ridge regression, a whitening and linear discriminants for `best` (best.py). What it is
not: the CCA of the tables (cca.py), which knows no classes. float64 without randomness.

Legend: N pairs, F image channels, D text channels, S classes of the training pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zscmr_ray.errors import DataError

Matrix = npt.NDArray[np.float64]
MIN_PAIRS = 3


@dataclass(frozen=True, slots=True)
class PairRows:
    """Training pairs: image features [N, F], text features [N, D], and a class number each (its own where there is none)."""

    image_NF: npt.NDArray[np.float32]
    text_ND: npt.NDArray[np.float32]
    class_N: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SideMoments:
    """One side: its mean, covariance, covariance within classes, centred rows and class means of the rows."""

    mean_D: Matrix
    total_DD: Matrix
    within_DD: Matrix
    rows_ND: Matrix
    class_ND: Matrix


def check_rows(rows: PairRows) -> None:
    """Raise DataError for fewer than 3 pairs or values that are not finite."""
    if len(rows.image_NF) < MIN_PAIRS:
        raise DataError(
            "too few pairs to fit", got=f"{len(rows.image_NF)} pairs", expected=f"{MIN_PAIRS} or more"
        )
    if not (np.isfinite(rows.image_NF).all() and np.isfinite(rows.text_ND).all()):
        raise DataError("fitting needs finite features", got="NaN or infinity", remedy="run preprocess again")


def side_moments(features_ND: npt.NDArray[Any], class_N: npt.NDArray[np.int64]) -> SideMoments:
    """Compute the moments of one side of the pairs."""
    rows_ND = np.asarray(features_ND, dtype=np.float64)
    mean_D = rows_ND.mean(axis=0)
    rows_ND = rows_ND - mean_D
    _, number_N, count_S = np.unique(class_N, return_inverse=True, return_counts=True)
    sums_SD = np.zeros((len(count_S), rows_ND.shape[1]))
    np.add.at(sums_SD, number_N, rows_ND)
    class_ND: Matrix = (sums_SD / count_S[:, None])[number_N]
    inner_ND, degrees = rows_ND - class_ND, len(rows_ND) - 1
    return SideMoments(
        mean_D, rows_ND.T @ rows_ND / degrees, inner_ND.T @ inner_ND / degrees, rows_ND, class_ND
    )


def cross_covariance(image: SideMoments, text: SideMoments, *, class_share: float) -> Matrix:
    """Return C_xy [F, D]; `class_share` is a, in [0, 1]."""
    own_FD, class_FD = image.rows_ND.T @ text.rows_ND, image.class_ND.T @ text.class_ND
    mixed: Matrix = ((1 - class_share) * own_FD + class_share * class_FD) / (len(image.rows_ND) - 1)
    return mixed


def regression(side: SideMoments, cross_DT: Matrix, *, regularisation: float) -> Matrix:
    """Return the ridge regression [D, T] from a side's centred features to targets of cross-covariance [D, T]."""
    ridge = _ridge(side.total_DD, regularisation) * np.eye(len(side.total_DD))
    return np.asarray(np.linalg.solve(side.total_DD + ridge, cross_DT), np.float64)


def discriminants(
    side: SideMoments, class_N: npt.NDArray[np.int64], *, regularisation: float, max_classes: int
) -> tuple[Matrix, Matrix]:
    """Return linear discriminants [D, S] and offsets [S] of the classes of two or more rows, the largest `max_classes`.

    A centred row's logits are row . discriminants + offsets, with a standard deviation of 1 over the training rows.
    """
    _, first_S, count_S = np.unique(class_N, return_index=True, return_counts=True)
    chosen_S = np.argsort(-count_S, kind="stable")[:max_classes]
    chosen_S = np.sort(chosen_S[count_S[chosen_S] > 1])
    mean_SD = side.class_ND[first_S[chosen_S]]
    ridge = _ridge(side.within_DD, regularisation) * np.eye(len(side.within_DD))
    weight_DS = np.asarray(np.linalg.solve(side.within_DD + ridge, mean_SD.T), np.float64)
    offset_S = -0.5 * np.einsum("sd,ds->s", mean_SD, weight_DS)
    if len(chosen_S) == 0:
        return weight_DS, offset_S
    scale = max(float((side.rows_ND @ weight_DS + offset_S).std()), float(np.finfo(np.float64).tiny))
    return weight_DS / scale, offset_S / scale


def inverse_root(covariance_DD: Matrix, regularisation: float) -> Matrix:
    """Return (C + ridge)^-1/2 [D, D]; `regularisation` > 0 is the ridge in units of the mean variance."""
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    root_D = np.sqrt(np.maximum(values_D, 0) + _ridge(covariance_DD, regularisation))
    result: Matrix = (vectors_DD / root_D) @ vectors_DD.T
    return result


def _ridge(covariance_DD: Matrix, regularisation: float) -> float:
    """The ridge; it has a floor, so that constant features (zero variance) still have a root."""
    mean_variance = float(np.trace(covariance_DD)) / len(covariance_DD)
    return max(regularisation * mean_variance, float(np.finfo(np.float64).eps))
