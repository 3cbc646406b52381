"""Calibration: rescale logits so that the confidence of a model matches its accuracy.

    temperature scaling    p = softmax(z / T)              one number for all classes
    vector scaling         p = softmax(a * z + b)          two numbers a class

(Guo et al. 2017, "On Calibration of Modern Neural Networks".) The parameters, a = 1 / T or (a, b),
minimize the NLL on samples that the model was not trained on. Logits are linear in them, hence the
NLL is convex, and Newton's method finds its one optimum. With d = z - z_y and p = softmax(a d) of a
sample:

    temperature    f(a)  = mean log sum_c exp(a d_c)
                   f'(a) = mean sum_c p_c d_c,     f''(a) = mean Var_p(d)

    vector         F  = sum nll + (||a - 1||^2 + ||b||^2) / 2
                   dF = sum_i [(p - e_y) z, p - e_y] + [a - 1, b]
                   H  = [[diag sum p z^2, diag sum p z], [diag sum p z, diag sum p]] - M^T M + I
                        with the rows [p z, p] of M (n, 2C)

The penalty of vector scaling is a normal prior of variance 1 around a = 1, b = 0. It determines
the directions that the NLL leaves open (a constant added to b, a class without samples), and fades
as n grows.
Temperature scaling never changes which class is the most probable; vector scaling may.

>>> z = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])  # overconfident
>>> fit_temperature(z, torch.tensor([0, 0, 1, 1]))(z).softmax(1)[0]  # 3 of 4 are correct
tensor([0.7500, 0.2500])
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["METHODS", "Calibration", "Method", "fit", "fit_temperature", "fit_vector_scaling"]

Method = Literal["temperature", "vector"]
METHODS: tuple[Method, ...] = get_args(Method)

MAX_NEWTON_STEPS = 100
"""Newton steps at most; about 10 are needed. Where a step would leave the bracket of a temperature,
the bracket is halved."""


class Calibration(NamedTuple):
    """Factor and offset of logits: scalars, or one number a class (C,)."""

    scale: Tensor
    shift: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the calibrated logits (..., C), in the dtype of ``logits``."""
        scale, shift = (t.to(logits) for t in self)
        return logits * scale + shift

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint stores."""
        return {"scale": self.scale, "shift": self.shift}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Calibration:
        """Return the calibration with this ``state_dict``."""
        return cls(state["scale"], state["shift"])

    def __str__(self) -> str:
        """Return a short description."""
        if self.scale.dim() == 0:
            return f"temperature {1 / self.scale.item():.4f}"
        low, high = self.scale.aminmax()
        return f"vector scaling of {len(self.scale)} classes by {low:.4f} to {high:.4f}"


def fit(logits: Tensor, y: Tensor, method: Method = "temperature") -> Calibration:
    """Return the calibration with the least NLL on logits (n, C) and class indices y (n,).

    See ``fit_temperature`` and ``fit_vector_scaling`` for the methods.

    Raises:
        ValueError, IndexError: the method is unknown, or as in ``fit_temperature``.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected {' or '.join(METHODS)}, got {method!r}")
    return (fit_temperature if method == "temperature" else fit_vector_scaling)(logits, y)


@torch.no_grad()
def fit_temperature(logits: Tensor, y: Tensor) -> Calibration:
    """Return the temperature with the least mean NLL, to the precision of float64.

    Args:
        logits: (n, C), of samples that the model was not trained on.
        y: class indices (n,), of an integer dtype.

    Raises:
        ValueError: shapes or dtypes do not fit, a logit is NaN or infinite, or no temperature is
            best: all predictions are correct (T = 0), or the logits say no more of the class than
            chance (T = infinity).
        IndexError: a class index is out of range.
    """
    z, y = _check_arguments(logits, y)
    d = z - z.gather(1, y[:, None])
    if d.amax() <= 0:
        raise ValueError(
            f"temperature: expected some wrong predictions, got {len(y)} that are all correct: "
            "the NLL decreases without end as the temperature goes to 0"
        )
    if _derivatives(d, 0.0)[0] >= 0:
        raise ValueError(
            "temperature: expected logits that predict the class better than chance, got logits "
            "whose NLL is least at an infinite temperature"
        )
    low, high, a = 0.0, math.inf, 1.0
    for _ in range(MAX_NEWTON_STEPS):
        slope, curvature = _derivatives(d, a)
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
    """Return scale and shift of each class with the least penalized NLL.

    Takes O(n C^2 + C^3) time a step and O(n C + C^2) memory. Arguments and errors are as in
    ``fit_temperature``, but an optimum always exists.
    """
    z, y = _check_arguments(logits, y)
    C = z.shape[1]
    theta = torch.stack([torch.ones(C), torch.zeros(C)]).to(z)  # a, b
    value, gradient, H = _vector_objective(z, y, theta)
    for _ in range(MAX_NEWTON_STEPS):
        step = torch.linalg.solve(H, gradient.flatten()).view_as(theta)
        decrease = float((gradient * step).sum()) / 2  # of the quadratic model
        if decrease <= 1e-14 * max(1.0, value):
            break
        t = 1.0
        while (new := _vector_objective(z, y, theta - t * step))[0] > value - 1e-4 * t * decrease:
            t /= 2
            if t < 1e-10:  # a decrease is lost in rounding
                return Calibration(*theta)
        theta = theta - t * step
        value, gradient, H = new
    return Calibration(*theta)


def _derivatives(d: Tensor, a: float) -> tuple[float, float]:
    """Return f'(a) and f''(a) of the mean NLL at the inverse temperature a; d is (n, C)."""
    p = (a * d).softmax(1)
    mean = (p * d).sum(1)
    return float(mean.mean()), float((p * (d - mean[:, None]).square()).sum(1).mean())


def _vector_objective(z: Tensor, y: Tensor, theta: Tensor) -> tuple[float, Tensor, Tensor]:
    """Return F, its gradient (2, C) and its Hessian (2C, 2C) at theta = [a, b] (2, C)."""
    a, b = theta
    log_p = (z * a + b).log_softmax(1)
    p = log_p.exp()
    deviation = theta - torch.tensor([[1.0], [0.0]]).to(theta)
    value = F.nll_loss(log_p, y, reduction="sum") + deviation.square().sum() / 2
    r = p.scatter_add(1, y[:, None], -torch.ones_like(p[:, :1]))
    gradient = torch.stack([(r * z).sum(0), r.sum(0)]) + deviation
    pz = p * z
    zz, z1, one = (pz * z).sum(0).diag(), pz.sum(0).diag(), p.sum(0).diag()
    M = torch.cat([pz, p], 1)
    H = torch.cat([torch.cat([zz, z1], 1), torch.cat([z1, one], 1)]) - M.T @ M
    return float(value), gradient, H + torch.eye(len(H)).to(H)


def _check_arguments(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits in float64 and y in int64, both on a CPU; raise for unusable ones."""
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
