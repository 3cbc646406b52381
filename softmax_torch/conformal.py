"""Conformal prediction: sets of classes that hold the true class with a given probability.

A set holds the classes whose conformity to the sample reaches a threshold,

    S(x) = {c : s(x, c) >= t}

With the probabilities p of a sample, and the rank r(c) of a class, 1 for the most probable:

    LAC     s = p_c                                     Sadinle, Lei & Wasserman 2019
    APS     s = sum_j p_j over r(j) >= r(c)             Romano, Sesia & Candes 2020
    RAPS    s = APS - penalty max(0, r(c) - k_reg)      Angelopoulos, Bates, Malik & Jordan 2021

The papers compare 1 - s with 1 - t. APS then is the probability of all classes ahead of c; summed
from the other end, small probabilities keep their digits. t is the k-th largest of the conformities
s(x_i, y_i) of n samples that the model was not trained on:

    k = ceil((n + 1) level),    which needs n >= level / (1 - level) samples

If these samples and the next one are exchangeable, the rank of the next one's conformity among all
n + 1 is uniform. Hence (Vovk, Gammerman & Shafer 2005; Lei et al. 2018, Theorem 2)

    P(y in S(x)) >= k / (n + 1) >= level,    with equality for the first where no two are equal

This holds on average over calibration sets. For a given one, the coverage of later samples is a
random draw from Beta(k, n + 1 - k) (Vovk 2012, Proposition 2). With ``per_class`` each class has
the threshold of its own samples, a set holds the classes that reach theirs, and the same holds for
the samples of each class (Vovk 2012, "label conditional"; Sadinle et al. 2019, Section 2).

Sets are deterministic: the same sample has the same set. The randomised sets of the papers attain
the level exactly by leaving classes out at random. Here the most probable class has s = 1 with APS
and RAPS, so it is in every set, and a model that is right more often than the level covers more. A
LAC set is empty where no class is probable enough. LAC has the smallest sets on average; APS and
RAPS have sets that are larger for harder samples. RAPS shortens them where there are many classes.

Temperature scaling tends to enlarge the sets of APS and RAPS (Dabah & Tirer 2024), so probabilities
are calibrated only on request. Sets remember by what, and whoever calls them passes logits without.

>>> z = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.2]])
>>> sets = fit(z, torch.tensor([0, 0, 0, 0]), level=0.8, score="lac")
>>> sets.threshold  # the least probable of the 4: k = ceil(5 * 0.8) = 4
tensor(0.4502, dtype=torch.float64)
>>> sets(torch.tensor([[0.1, 0.0], [0.5, 0.0]]))
tensor([[ True,  True],
        [ True, False]])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.compiler import is_compiling

from softmax_torch.calibration import Calibration, check_samples
from softmax_torch.threads import is_small, one_thread_if

__all__ = [
    "LEVEL",
    "SCORES",
    "ConformalSets",
    "Score",
    "check_level",
    "conformity",
    "fit",
    "rank_of_threshold",
    "samples_needed",
]

Score = Literal["lac", "aps", "raps"]
SCORES: tuple[Score, ...] = get_args(Score)

LEVEL = 0.9
"""Default probability with which a set holds the true class."""

PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)
"""Penalties of RAPS to choose from: those of its authors (Angelopoulos et al. 2021, Appendix E)."""

TUNING_SHARE = 5
"""One in so many samples chooses the penalty of RAPS and is not used for its threshold."""

NAMED = 5
"""Most classes that an error names."""


class ConformalSets(NamedTuple):
    """Thresholds of conformity: which classes belong to the set of a sample.

    Attributes:
        score: the conformity: "lac", "aps" or "raps".
        level: the probability with which a set is to hold the true class.
        threshold: least conformity of a class in a set, float64: one number, or one a class (C,).
        samples: number of samples behind each threshold, int64, of the same shape.
        k_reg: number of ranks without a penalty, at least 1; of RAPS alone.
        penalty: what RAPS takes off the conformity for each further rank.
        calibration: what is applied to logits before the softmax; None for none.
    """

    score: Score
    level: float
    threshold: Tensor
    samples: Tensor
    k_reg: int = 1
    penalty: float = 0.0
    calibration: Calibration | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Return which classes are in the set of each sample, bool (..., C).

        Args:
            logits: (..., C), not calibrated; probabilities are computed in float64. Class
                probabilities p may be passed as log p.
        """
        return self.conformity(logits) >= self.threshold.to(logits.device)

    def conformity(self, logits: Tensor) -> Tensor:
        """Return the conformity of each class (..., C) in float64, of logits as in a call."""
        return conformity(self.calibrated(logits), self.score, self.k_reg, self.penalty)

    def calibrated(self, logits: Tensor) -> Tensor:
        """Return the logits whose softmax the sets are made of, in float64."""
        z = logits.double()
        return z if self.calibration is None else self.calibration(z)

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors and plain values that a checkpoint stores."""
        calibration = None if self.calibration is None else self.calibration.state_dict()
        return self._asdict() | {"calibration": calibration}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> ConformalSets:
        """Return the sets with this ``state_dict``, or with its tensors as numbers and lists."""
        calibration = state["calibration"]
        return cls(
            state["score"],
            state["level"],
            torch.as_tensor(state["threshold"], dtype=torch.float64),
            torch.as_tensor(state["samples"], dtype=torch.int64),
            state["k_reg"],
            state["penalty"],
            None if calibration is None else Calibration.from_state_dict(calibration),
        )

    def __str__(self) -> str:
        """Return a short description."""
        text = f"{self.score.upper()} sets at level {self.level:g}"
        if self.score == "raps":
            text += f" (penalty {self.penalty:g} after rank {self.k_reg})"
        if self.threshold.dim():
            text += f" for each of {len(self.threshold)} classes"
        if self.calibration is not None:
            text += f" of probabilities with {self.calibration}"
        return f"{text}, from {int(self.samples.sum())} samples"


@torch.no_grad()
def fit(
    logits: Tensor,
    y: Tensor,
    level: float = LEVEL,
    score: Score = "aps",
    *,
    per_class: bool = False,
    calibration: Calibration | None = None,
    regularization: tuple[int, float] | None = None,
    class_names: Sequence[str] | None = None,
) -> ConformalSets:
    """Return the conformal sets that logits (n, C) and class indices y (n,) calibrate.

    Args:
        logits: of samples that neither the model nor ``calibration`` was fitted to, not calibrated.
        y: their classes.
        level: probability with which a set is to hold the true class, in (0, 1).
        score: "lac", "aps" or "raps"; see the head of this module.
        per_class: whether each class gets its own threshold, for the level within each class.
        calibration: what is applied to logits before the softmax.
        regularization: ``(k_reg, penalty)`` of RAPS. None has a fifth of the samples choose them,
            drawn with seed 0 and used for nothing else: k_reg is the rank that holds the share
            ``level`` of the true classes, the penalty one of ``PENALTIES``, the one with the
            smallest sets (Angelopoulos et al. 2021, Appendix E).
        class_names: names of the classes for errors; by default their indices.

    Raises:
        ValueError: the score, the level or the regularization has an impossible value, the logits
            are unusable, or the samples are too few for the level, which the error says.
        IndexError: a class index is out of range.
    """
    check_level(level)
    if score not in SCORES:
        raise ValueError(f"score: expected {', '.join(SCORES[:-1])} or {SCORES[-1]}, got {score!r}")
    _check_regularization(score, regularization)
    z, y, _ = check_samples(logits, y, None)
    z = z if calibration is None else calibration(z)
    with one_thread_if(is_small(len(z), z.shape[1], 8)):
        if chosen := score == "raps" and regularization is None:
            z, y, regularization = _split_and_regularize(z, y, level)
        k_reg, penalty = regularization or (1, 0.0)
        conformities = conformity(z, score, k_reg, penalty).gather(1, y[:, None])[:, 0]
        if per_class:
            counts = torch.bincount(y, minlength=z.shape[1])
            _check_classes(counts, level, class_names)
            of_class = torch.split(conformities[y.argsort(stable=True)], counts.tolist())
            threshold = torch.stack([_threshold(s, level) for s in of_class])
        else:
            counts = torch.tensor(len(y))
            _check_enough(len(y), level, chosen)
            threshold = _threshold(conformities, level)
    return ConformalSets(score, float(level), threshold, counts, k_reg, penalty, calibration)


def conformity(z: Tensor, score: Score, k_reg: int = 1, penalty: float = 0.0) -> Tensor:
    """Return the conformity of each class (..., C) of calibrated logits z (..., C), in float64.

    Of equally probable classes, the last one ranks first.
    """
    p = z.double().softmax(-1)
    if score == "lac":
        return p
    # The least probable class first. ONNX has one sort, in which equal values keep their order.
    order = z.sort(dim=-1).indices if is_compiling() else z.sort(dim=-1, stable=True).indices
    mass = p.gather(-1, order).cumsum(-1)
    mass = mass / mass[..., -1:]  # exactly 1 for the most probable class, in whatever order
    if score == "raps":
        rank = torch.arange(z.shape[-1], 0, -1, device=z.device)
        mass = mass - penalty * (rank - k_reg).clamp(min=0)
    return torch.zeros_like(p).scatter(-1, order, mass)


def check_level(level: float) -> None:
    """Raise ValueError unless a level is a number in (0, 1)."""
    if not isinstance(level, int | float) or not 0 < level < 1:
        raise ValueError(f"level: expected a number above 0 and below 1, got {level!r}")


def rank_of_threshold(n: int, level: float) -> int:
    """Return k = ceil((n + 1) level), for the level as the decimal fraction that it is written as.

    In floating point 100 * 0.55 is above 55, and k would be 56.
    """
    return math.ceil((n + 1) * _exact(level))


def samples_needed(level: float) -> int:
    """Return the least number of samples from which a threshold at a level can be computed."""
    return math.ceil(_exact(level) / (1 - _exact(level)))


def _exact(level: float) -> Fraction:
    return Fraction(repr(float(level)))


def _threshold(conformities: Tensor, level: float) -> Tensor:
    """Return the k-th largest of the conformities (n,), k <= n."""
    n = len(conformities)
    return conformities.kthvalue(n + 1 - rank_of_threshold(n, level)).values


def _split_and_regularize(
    z: Tensor, y: Tensor, level: float
) -> tuple[Tensor, Tensor, tuple[int, float]]:
    """Return the samples for the threshold, and (k_reg, penalty) that the others choose."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).to(y.device)
    held_out, kept = order.tensor_split([max(1, len(y) // TUNING_SHARE)])
    return z[kept], y[kept], _regularization(z[held_out], y[held_out], level)


def _regularization(z: Tensor, y: Tensor, level: float) -> tuple[int, float]:
    """Return k_reg and the penalty with the smallest sets on the samples that choose them."""
    n = len(y)
    k = min(n, rank_of_threshold(n, level))  # no guarantee is needed here
    rank = 1 + (z > z.gather(1, y[:, None])).sum(1)
    k_reg = int(rank.kthvalue(k).values)

    def mean_size(penalty: float) -> float:
        s = conformity(z, "raps", k_reg, penalty)
        least = s.gather(1, y[:, None])[:, 0].kthvalue(n + 1 - k).values
        return float((s >= least).sum()) / n

    return k_reg, min(PENALTIES, key=mean_size)


def _check_regularization(score: Score, regularization: tuple[int, float] | None) -> None:
    if regularization is None:
        return
    if score != "raps":
        raise ValueError(f"regularization: expected None, as {score} has none, got a value")
    k_reg, penalty = regularization
    if k_reg < 1 or not 0 <= penalty < math.inf:
        raise ValueError(
            "regularization: expected (k_reg, penalty) with k_reg >= 1 and a finite penalty >= 0, "
            f"got {regularization}"
        )


def _check_enough(n: int, level: float, chosen: bool) -> None:
    needed = samples_needed(level)
    if n < needed:
        beside = " beside those that choose the penalty" if chosen else ""
        raise ValueError(
            f"level: expected at least {needed} samples{beside} for {level:g}, got {n}"
        )


def _check_classes(counts: Tensor, level: float, class_names: Sequence[str] | None) -> None:
    """Raise ValueError that names the classes with too few samples for the level."""
    needed = samples_needed(level)
    few = (counts < needed).nonzero()[:, 0].tolist()
    if not few:
        return
    names = [f"class {c}" if class_names is None else repr(class_names[c]) for c in few[:NAMED]]
    parts = [f"{int(counts[c])} of {name}" for c, name in zip(few, names, strict=False)]
    if len(few) > NAMED:
        parts.append(f"too few of {len(few) - NAMED} more")
    got = " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
    raise ValueError(
        f"per_class: expected at least {needed} samples of each class for level {level:g}, got "
        f"{got}"
    )
