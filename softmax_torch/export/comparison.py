"""Compare what an exported file predicts with the classifier.

Two programs round differently. A probability may differ by a tolerance; a class that rounding
decides may be another one, or may be in a set or not.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softmax_torch.calibration import Calibration
from softmax_torch.conformal import ConformalSets
from softmax_torch.laplace import Posterior
from softmax_torch.predictor import Predictor

__all__ = ["TOLERANCE", "check_predictions", "check_sets", "tolerance_of"]

TOLERANCE = 1e-5
"""Largest difference of a probability from the classifier's: some 80 units of float32 at 1."""

ROUNDING_FACTOR = 4
"""Allowed multiple of the classifier's own rounding error, if that is more than ``TOLERANCE``. With
logits of 1e4, whose digits end at 1e-3, another order of summation alone changes p by 1e-4."""


def tolerance_of(
    predictor: Predictor,
    x: Tensor,
    calibration: Calibration | None,
    laplace: Posterior | None = None,
) -> float:
    """Return the largest difference of a probability to allow for x, with one of these or none.

    It is ``TOLERANCE``, or more where the classifier itself rounds more than that.
    """

    def probabilities(network: Any, dtype: torch.dtype) -> Tensor:
        precise = torch.promote_types(dtype, torch.float32)
        if laplace is not None:
            features, z = (t.to(precise) for t in network.features_and_logits(x.to(dtype)))
            return laplace.predict_proba(z, features, predictor.laplace_method).double()
        z = network(x.to(dtype)).to(precise)
        p: Tensor = (z if calibration is None else calibration(z)).softmax(1)
        return p.double()

    with torch.inference_mode():
        exact = probabilities(deepcopy(predictor.network).double(), torch.float64)
        error = probabilities(predictor.network, predictor.dtype) - exact
    return max(TOLERANCE, ROUNDING_FACTOR * float(error.abs().max()))


def check_predictions(
    output: Path,
    predicted: tuple[Tensor, ...],
    expected: Tensor,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise ArithmeticError unless an exported file predicts as the classifier does.

    Args:
        output: the file, for the message.
        predicted: labels (n,) and probabilities (n, C) by the file. Where the classifier gives two
            classes the same probability, up to the tolerance, the label may be either.
        expected: probabilities (n, C) by the classifier.
        tolerance: largest difference of a probability.
    """
    labels, p = predicted[:2]
    differences = (p.double() - expected.double()).abs().amax(1)
    label_gap = expected.amax(1) - expected.gather(1, labels[:, None])[:, 0]
    # Not ``>``, which NaN never satisfies.
    wrong = ~((differences <= tolerance) & (label_gap <= 2 * tolerance))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ArithmeticError(
            f"{output}: expected the predictions of the classifier, with probabilities within "
            f"{tolerance:.2g}, got others for {int(wrong.sum())} of {len(wrong)} samples, the "
            f"first of them sample {row}: class {int(labels[row])} instead of "
            f"{int(expected[row].argmax())}, probabilities up to {float(differences.max()):.2g} "
            "apart; nothing was written"
        )


def check_sets(
    output: Path,
    predicted: Tensor,
    sets: ConformalSets,
    logits: Tensor,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise ArithmeticError unless an exported file has the conformal sets of the classifier.

    Args:
        output: the file, for the message.
        predicted: which classes are in the set of each sample by the file, bool (n, C).
        sets: the conformal sets of the classifier.
        logits: (n, C) by the classifier, not calibrated.
        tolerance: largest difference of a probability. It may decide whether a class belongs to a
            set that its conformity barely reaches, and how two classes rank that barely differ.
    """
    low, high = conformity_bounds(sets, sets.calibrated(logits).softmax(1), tolerance)
    wrong = torch.where(predicted, high < sets.threshold, low >= sets.threshold)
    if wrong.any():
        row, c = wrong.nonzero()[0].tolist()
        kept = "with" if predicted[row, c] else "without"
        raise ArithmeticError(
            f"{output}: expected the conformal sets of the classifier, got others for "
            f"{int(wrong.any(1).sum())} of {len(wrong)} samples, the first of them sample {row}: "
            f"{kept} class {c}; nothing was written"
        )


def conformity_bounds(sets: ConformalSets, p: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return the least and the largest conformity (n, C) of probabilities near p (n, C).

    Near are those of logits that differ by at most twice the tolerance. The log-odds of a sum m of
    probabilities then differ by at most 4 tolerance, hence m by m (1 - m) times that: each
    probability and each sum of some by at most the tolerance.
    """
    if sets.score == "lac":
        return p - tolerance, p + tolerance
    C = p.shape[1]
    ascending = p.sort(1).values
    mass = torch.nn.functional.pad(ascending.cumsum(1), (1, 0))  # of the k least probable classes
    below = torch.searchsorted(ascending, p - 2 * tolerance)  # classes that surely rank behind
    until = torch.searchsorted(ascending, p + 2 * tolerance, right=True)  # and that may, with c
    low, high = mass.gather(1, below) + p - tolerance, mass.gather(1, until) + tolerance
    low = low - sets.penalty * (C - below - sets.k_reg).clamp(min=0)
    high = high - sets.penalty * (C - until + 1 - sets.k_reg).clamp(min=0)
    return torch.where(below == C - 1, 1.0, low), high  # the most probable class has exactly 1
