"""Decision thresholds for two classes: predict the second, positive one from a probability on.

    class of a sample = 1 if p_1 >= t, else 0

t = 1/2 has the fewest errors where probabilities are right. Another t serves where errors are not
equally bad, or where a rare class is to be found. Each t of a set of n samples gives the counts

    TP, FN  positive samples with p_1 >= t, and with p_1 < t
    FP, TN  negative samples with p_1 >= t, and with p_1 < t

and ``choose`` returns the t with the best

    balanced_accuracy   (TP / (TP + FN) + TN / (TN + FP)) / 2, best where Youden's J = TPR - FPR is
    f1                  2 TP / (2 TP + FP + FN)
    cost                the least c_FP FP + c_FN FN. (With right probabilities, it is least in
                        expectation at t = c_FP / (c_FP + c_FN): Elkan 2001, equation 2)

The counts change only at the probabilities of samples, so one sort tries every t, O(n log n). It
lies midway between two neighbouring probabilities; of several equally good ones the nearest to 1/2
is taken. Choose it on samples that the model was not trained on, and measure it on others.

A threshold remembers the calibration of the probabilities that it was chosen for, if any, and is
given logits without.

>>> z = torch.tensor([[0.0, -2.0], [0.0, -1.0], [0.0, -0.5], [0.0, -3.0]])
>>> found = choose(z, torch.tensor([0, 1, 1, 0]))  # p_1 = 0.12, 0.27, 0.38, 0.05
>>> round(found.value, 4), found(z).tolist()
(0.1941, [0, 1, 1, 0])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from softmax_torch.calibration import Calibration, check_samples

__all__ = [
    "CRITERIA",
    "STORED",
    "Criterion",
    "DecisionThreshold",
    "check_costs",
    "check_threshold",
    "check_two_classes",
    "choose",
]

Criterion = Literal["balanced_accuracy", "f1", "cost"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

STORED: Literal["stored"] = "stored"
"""What stands for the threshold in a checkpoint where a number may be given."""


class DecisionThreshold(NamedTuple):
    """The probability of the second class from which on it is predicted.

    Attributes:
        value: t, in (0, 1).
        positive: name of the second class; None if unknown.
        criterion: what it was chosen by; None for a number of the user's.
        costs: costs of a false positive and a false negative, of "cost" alone.
        calibration: what is applied to logits before the softmax; None for none.
    """

    value: float
    positive: str | None = None
    criterion: Criterion | None = None
    costs: tuple[float, float] | None = None
    calibration: Calibration | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the class of each sample, int64 (n,), of logits (n, 2) that are not calibrated.

        Raises:
            ValueError: there are not two classes.
        """
        check_two_classes(logits.shape[1])
        return (self.probability(logits) >= self.value).long()

    def probability(self, logits: Tensor) -> Tensor:
        """Return p_1 of each sample, float64 (n,), of logits as in a call."""
        z = logits.double()
        return (z if self.calibration is None else self.calibration(z)).softmax(1)[:, 1]

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors and plain values that a checkpoint stores."""
        calibration = None if self.calibration is None else self.calibration.state_dict()
        return self._asdict() | {"calibration": calibration}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> DecisionThreshold:
        """Return the threshold with this ``state_dict``."""
        calibration = state["calibration"]
        return cls(
            state["value"],
            state["positive"],
            state["criterion"],
            state["costs"],
            None if calibration is None else Calibration.from_state_dict(calibration),
        )

    def __str__(self) -> str:
        """Return a short description."""
        text = f"{self.positive or 'the second class'} from a probability of {self.value:.4g} on"
        if self.calibration is not None:
            text += f" with {self.calibration}"
        if self.criterion is None:
            return text
        by = self.criterion.replace("_", " ")
        if self.costs is not None:
            by += " of {:g} a false positive and {:g} a false negative".format(*self.costs)
        return f"{text}, by {by}"


@torch.no_grad()
def choose(
    logits: Tensor,
    y: Tensor,
    criterion: Criterion = "balanced_accuracy",
    *,
    costs: Sequence[float] = (1.0, 1.0),
    calibration: Calibration | None = None,
    class_names: Sequence[str] | None = None,
) -> DecisionThreshold:
    """Return the threshold that is best on logits (n, 2) and class indices y (n,).

    Args:
        logits: of samples that neither the model nor ``calibration`` was fitted to, not calibrated.
        y: their classes.
        criterion: "balanced_accuracy", "f1" or "cost"; see the head of this module.
        costs: of a false positive and of a false negative, for "cost".
        calibration: what is applied to logits before the softmax.
        class_names: names of the two classes.

    Raises:
        ValueError: the criterion or the costs are none, the logits are unusable or of more than two
            classes, or one of the classes has no samples.
        IndexError: a class index is out of range.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion: expected one of {', '.join(CRITERIA)}, got {criterion!r}")
    check_costs(costs)
    z, y, _ = check_samples(logits, y, None)
    check_two_classes(z.shape[1])
    if y.amin() == y.amax():
        missing = 1 - int(y[0])
        name = missing if class_names is None else class_names[missing]
        raise ValueError(
            f"threshold: expected samples of both classes to choose it on, got none of {name}"
        )
    given = (float(costs[0]), float(costs[1])) if criterion == "cost" else None
    positive = None if class_names is None else class_names[1]
    rule = DecisionThreshold(0.5, positive, criterion, given, calibration)
    t, counts = _candidates(rule.probability(z), y)
    goodness = _goodness(counts, criterion, given or (1.0, 1.0))
    best = t[goodness == goodness.amax()]
    return rule._replace(value=float(best[(best - 0.5).abs().argmin()]))


def _candidates(p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return thresholds (m,) in (0, 1), and the counts TP, FP, FN, TN (4, m) of each.

    Args:
        p: probabilities of the second class (n,), float64.
        y: class indices (n,).
    """
    distinct, at = torch.unique(p, return_inverse=True)
    positive = torch.bincount(at, y.double(), minlength=len(distinct))
    negative = torch.bincount(at, minlength=len(distinct)) - positive
    # Below threshold k lie the k smallest of the distinct probabilities.
    FN, TN = (torch.cat([x.new_zeros(1), x.cumsum(0)]) for x in (positive, negative))
    TP, FP = FN[-1] - FN, TN[-1] - TN
    edges = torch.cat([p.new_zeros(1), distinct, p.new_ones(1)])
    t = edges[:-1] / 2 + edges[1:] / 2
    # Rounding may put one onto the probability below it, which it then would not exclude.
    inside = (t > edges[:-1]) & (t < 1)
    return t[inside], torch.stack([TP, FP, FN, TN])[:, inside]


def _goodness(counts: Tensor, criterion: Criterion, costs: tuple[float, float]) -> Tensor:
    """Return what is largest at the best threshold, (m,), from the counts TP, FP, FN, TN (4, m)."""
    TP, FP, FN, TN = counts
    if criterion == "balanced_accuracy":
        goodness: Tensor = (TP / (TP + FN) + TN / (TN + FP)) / 2
    elif criterion == "f1":
        goodness = 2 * TP / (2 * TP + FP + FN)
    else:
        goodness = -(costs[0] * FP + costs[1] * FN)
    return goodness


def check_two_classes(classes: int) -> None:
    """Raise ValueError unless there are two classes."""
    if classes != 2:
        raise ValueError(
            f"threshold: expected a model of two classes, got {classes}: of several probabilities "
            "the largest decides"
        )


def check_threshold(value: float | str) -> None:
    """Raise ValueError unless a threshold lies in (0, 1)."""
    if isinstance(value, str) or not 0 < value < 1:
        raise ValueError(f"threshold: expected a number in (0, 1), got {value!r}")


def check_costs(costs: Sequence[float]) -> None:
    """Raise ValueError unless costs are two positive numbers."""
    if len(costs) != 2 or not all(0 < cost < math.inf for cost in costs):
        raise ValueError(
            "costs: expected two positive numbers, of a false positive and of a false negative, "
            f"got {list(costs)}"
        )
