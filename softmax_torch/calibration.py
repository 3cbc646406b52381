"""Calibration: logits rescaled on samples a model was not trained on, so that confidence is earned.

    temperature scaling    p = softmax(z / T)              one number for all classes
    vector scaling         p = softmax(a * z + b)          two numbers a class

(Guo et al. 2017, "On Calibration of Modern Neural Networks".) Both are linear in what is fitted,
a = 1 / T or (a, b), hence the NLL is convex in it, and Newton's method finds the one optimum. With
d = z - z_y and p = softmax(a d) of a sample:

    temperature    f(a)  = mean log sum_c exp(a d_c)
                   f'(a) = mean sum_c p_c d_c,     f''(a) = mean Var_p(d)

    vector         F  = sum nll + (||a - 1||^2 + ||b||^2) / 2
                   dF = sum_i [(p - e_y) z, p - e_y] + [a - 1, b]
                   H  = [[diag sum p z^2, diag sum p z], [diag sum p z, diag sum p]] - M^T M + I
                        with the rows [p z, p] of M (n, 2C)

The pull towards a = 1, b = 0 weighs as much as a normal prior of variance 1: it fixes what the NLL
leaves open (a constant added to b, a class that no sample has) and fades as n grows.
Temperature scaling never changes which class is the most probable one; vector scaling may.

>>> z = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])  # sure of themselves
>>> fit_temperature(z, torch.tensor([0, 0, 1, 1]))(z).softmax(1)[0]  # right 3 times of 4
tensor([0.7500, 0.2500])
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["METHODS", "Calibration", "Method", "fit", "fit_temperature", "fit_vector_scaling"]

Method = Literal["temperature", "vector"]
METHODS = ("temperature", "vector")

STEPS = 100
"""Newton steps at most. Some 10 are made; the bracket of a temperature halves in any case."""


class Calibration(NamedTuple):
    """What logits are multiplied by, and what is added: scalars, or one number a class (C,)."""

    scale: Tensor
    shift: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """Calibrated logits (..., C), in the type of those given."""
        scale, shift = (t.to(logits) for t in self)
        return logits * scale + shift

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {"scale": self.scale, "shift": self.shift}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Calibration:
        """The one that was saved."""
        return cls(state["scale"], state["shift"])

    def __str__(self) -> str:
        """In a few words."""
        if self.scale.dim() == 0:
            return f"temperature {1 / self.scale.item():.4f}"
        low, high = self.scale.aminmax()
        return f"vector scaling of {len(self.scale)} classes by {low:.4f} to {high:.4f}"


def fit(logits: Tensor, y: Tensor, method: Method = "temperature") -> Calibration:
    """The calibration of least NLL on logits (n, C) and class indices (n,); see each method."""
    if method not in METHODS:
        raise ValueError(f"method: expected {' or '.join(METHODS)}, got {method!r}")
    return (fit_temperature if method == "temperature" else fit_vector_scaling)(logits, y)


@torch.no_grad()
def fit_temperature(logits: Tensor, y: Tensor) -> Calibration:
    """The temperature of least mean NLL, to the precision of float64.

    Args:
        logits: (n, C), of samples that the model was not trained on.
        y: class indices (n,).

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, or a temperature that does not exist:
            no sample is wrong (T = 0), or the logits are no better than none (T = infinity).
        IndexError: a class index out of range.
    """
    z, y = _checked(logits, y)
    d = z - z.gather(1, y[:, None])
    if d.amax() <= 0:
        raise ValueError(
            f"temperature: expected some sample whose most probable class is wrong, got {len(y)} "
            "that are all right: the NLL falls for ever as the temperature goes to 0"
        )
    if _slope(d, 0.0)[0] >= 0:
        raise ValueError(
            "temperature: expected logits that say more of the class than chance, got some of "
            "which the best use is none (an infinite temperature)"
        )
    low, high, a = 0.0, math.inf, 1.0
    for _ in range(STEPS):
        slope, curvature = _slope(d, a)
        if slope < 0:
            low = a
        else:
            high = a
        step = a - slope / curvature if curvature > 0 else math.inf
        if not low < step < high:  # Newton left the bracket
            step = 2 * a if high == math.inf else (low + high) / 2
        done = abs(step - a) <= 1e-14 * a
        a = step
        if done:
            break
    return Calibration(torch.tensor(a, dtype=torch.float64), torch.zeros((), dtype=torch.float64))


@torch.no_grad()
def fit_vector_scaling(logits: Tensor, y: Tensor) -> Calibration:
    """Scale and shift of each class of least NLL, with the pull towards none of the module's head.

    It takes O(n C^2 + C^3) time and O(C^2) memory. Arguments and errors are those of
    ``fit_temperature``, of which only faulty input is one: there always is an optimum.
    """
    z, y = _checked(logits, y)
    C = z.shape[1]
    theta = torch.stack([torch.ones(C), torch.zeros(C)]).to(z)  # a, b
    value, gradient, H = _vector(z, y, theta)
    for _ in range(STEPS):
        step = torch.linalg.solve(H, gradient.flatten()).view_as(theta)
        decrease = float((gradient * step).sum()) / 2  # of the quadratic model
        if decrease <= 1e-14 * max(1.0, value):
            break
        t = 1.0
        while (new := _vector(z, y, theta - t * step))[0] > value - 1e-4 * t * decrease:
            t /= 2
            if t < 1e-10:  # no decrease can be told from rounding any more
                return Calibration(*theta)
        theta = theta - t * step
        value, gradient, H = new
    return Calibration(*theta)


def _slope(d: Tensor, a: float) -> tuple[float, float]:
    """f' and f'' of the mean NLL at the inverse temperature a."""
    p = (a * d).softmax(1)
    mean = (p * d).sum(1)
    return float(mean.mean()), float((p * (d - mean[:, None]).square()).sum(1).mean())


def _vector(z: Tensor, y: Tensor, theta: Tensor) -> tuple[float, Tensor, Tensor]:
    """F, its gradient (2, C) and its Hessian (2C, 2C)."""
    a, b = theta
    log_p = (z * a + b).log_softmax(1)
    p = log_p.exp()
    pull = theta - torch.tensor([[1.0], [0.0]]).to(theta)
    value = F.nll_loss(log_p, y, reduction="sum") + pull.square().sum() / 2
    r = p.scatter_add(1, y[:, None], -torch.ones_like(p[:, :1]))
    gradient = torch.stack([(r * z).sum(0), r.sum(0)]) + pull
    pz = p * z
    zz, z1, one = (pz * z).sum(0).diag(), pz.sum(0).diag(), p.sum(0).diag()
    M = torch.cat([pz, p], 1)
    H = torch.cat([torch.cat([zz, z1], 1), torch.cat([z1, one], 1)]) - M.T @ M
    return float(value), gradient, H + torch.eye(len(H)).to(H)


def _checked(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both on a CPU, the logits in float64, if they can be used."""
    if logits.dim() != 2 or y.shape != logits.shape[:1] or len(y) == 0:
        raise ValueError(
            "logits and y: expected shapes (n, C) and (n,) with n > 0, got "
            f"{tuple(logits.shape)} and {tuple(y.shape)}"
        )
    if y.is_floating_point() or y.dtype == torch.bool:
        raise ValueError(f"y: expected class indices of an integer type, got {y.dtype}")
    z, y = logits.cpu().double(), y.cpu().long()
    if not z.isfinite().all():
        row = int((~z.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"logits: expected finite numbers, got NaN or infinity in row {row}")
    least, most = int(y.min()), int(y.max())
    if least < 0 or most >= z.shape[1]:
        raise IndexError(
            f"y: expected class indices in [0, {z.shape[1]}), got {least if least < 0 else most}"
        )
    return z, y
