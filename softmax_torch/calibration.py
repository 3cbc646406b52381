"""Calibration: rescale logits so that the confidence of a model matches its accuracy.

    temperature scaling    p = softmax(z / T)              one number for all classes
    vector scaling         p = softmax(a * z + b)          two numbers a class

(Guo et al. 2017, "On Calibration of Modern Neural Networks".) The parameters, a = 1 / T or (a, b),
minimize the NLL on samples that the model was not trained on; sample weights w weight the means and
sums over samples. Logits are linear in them, hence the
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
import warnings
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from softmax_torch.threads import is_small, one_thread_if

__all__ = [
    "METHODS",
    "Calibration",
    "Method",
    "check_samples",
    "fit",
    "fit_temperature",
    "fit_vector_scaling",
]

Method = Literal["temperature", "vector"]
METHODS: tuple[Method, ...] = get_args(Method)

MAX_NEWTON_STEPS = 100
"""Newton steps at most; about 10 are needed. Where a step would leave the bracket of a temperature,
the bracket is halved."""

LIMITS = (math.exp(-10), math.exp(10))
"""The scales that stand for 0 and infinity where no temperature is best: those of scikit-learn."""

OPERATIONS = 8
"""Multiplications that take as long as a step of temperature scaling takes for a logit."""


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
        """Return the calibration with this ``state_dict``, or with its tensors as lists."""
        scale, shift = (torch.as_tensor(state[name]) for name in cls._fields)
        return cls(scale.double(), shift.double())

    def __str__(self) -> str:
        """Return a short description."""
        if self.scale.dim() == 0:
            return f"temperature {1 / self.scale.item():.4f}"
        low, high = self.scale.aminmax()
        return f"vector scaling of {len(self.scale)} classes by {low:.4f} to {high:.4f}"


def fit(
    logits: Tensor,
    y: Tensor,
    method: Method = "temperature",
    *,
    sample_weight: Tensor | None = None,
) -> Calibration:
    """Return the calibration with the least NLL on logits (n, C) and class indices y (n,).

    See ``fit_temperature`` and ``fit_vector_scaling`` for the methods.

    Raises:
        ValueError, IndexError: the method is unknown, or as in ``fit_temperature``.
    """
    if method not in METHODS:
        raise ValueError(f"method: expected {' or '.join(METHODS)}, got {method!r}")
    fit_method = fit_temperature if method == "temperature" else fit_vector_scaling
    return fit_method(logits, y, sample_weight=sample_weight)


@torch.no_grad()
def fit_temperature(
    logits: Tensor, y: Tensor, *, sample_weight: Tensor | None = None, clip: bool = False
) -> Calibration:
    """Return the temperature with the least mean NLL, to the precision of float64.

    Args:
        logits: (n, C), of samples that the model was not trained on.
        y: class indices (n,), of an integer dtype.
        sample_weight: weights (n,), >= 0; None for ones. Samples of weight 0 are left out.
        clip: what to do where no temperature is best. True returns the limit, with 1 / T clipped to
            [exp(-10), exp(10)] as in scikit-learn, and warns; for code that calibrates many models
            and must not stop. False raises ValueError.

    Raises:
        ValueError: shapes or dtypes do not fit, a logit or a weight is NaN or infinite, a weight is
            negative, all are 0; or no temperature is best, without ``clip``: all predictions are
            correct (T = 0), or the logits say no more of the class than chance (T = infinity).
        IndexError: a class index is out of range.

    Warns:
        RuntimeWarning: no temperature is best, and the limit is returned.
    """
    z, y, w = check_samples(logits, y, sample_weight)
    w = w / w.sum()
    d = z - z.gather(1, y[:, None])
    with one_thread_if(is_small(len(d), d.shape[1], OPERATIONS)):
        found = _limit(d, w)
        best = math.nan if found is not None else _best_inverse_temperature(d, w)
    if found is not None:
        limit, reason = found
        if not clip:
            raise ValueError(f"temperature: {reason}")
        warnings.warn(
            f"temperature: {reason}; clipped to {1 / limit:.2g}", RuntimeWarning, stacklevel=2
        )
        return _of_inverse_temperature(limit)
    return _of_inverse_temperature(best)


def _best_inverse_temperature(d: Tensor, w: Tensor) -> float:
    """Return the inverse temperature with the least mean NLL; see ``_derivatives``."""
    low, high, a = 0.0, math.inf, 1.0
    for _ in range(MAX_NEWTON_STEPS):
        slope, curvature = _derivatives(d, w, a)
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
    return a


def _limit(d: Tensor, w: Tensor) -> tuple[float, str] | None:
    """Return the limit of 1 / T and the reason where no temperature is best, else None."""
    if _derivatives(d, w, 0.0)[0] >= 0:
        return LIMITS[0], (
            "expected logits that predict the class better than chance, got logits whose NLL is "
            "least at an infinite temperature"
        )
    if d.amax() <= 0:
        return LIMITS[1], (
            f"expected some wrong predictions, got {len(d)} that are all correct: the NLL "
            "decreases without end as the temperature goes to 0"
        )
    return None


def _of_inverse_temperature(a: float) -> Calibration:
    return Calibration(torch.tensor(a, dtype=torch.float64), torch.zeros((), dtype=torch.float64))


@torch.no_grad()
def fit_vector_scaling(
    logits: Tensor, y: Tensor, *, sample_weight: Tensor | None = None
) -> Calibration:
    """Return scale and shift of each class with the least penalized NLL.

    Takes O(n C^2 + C^3) time a step and O(n C + C^2) memory. Arguments and errors are as in
    ``fit_temperature``, but an optimum always exists.
    """
    z, y, w = check_samples(logits, y, sample_weight)
    with one_thread_if(is_small(len(z), z.shape[1], 4 * z.shape[1])):  # the products of a Hessian
        return Calibration(*_best_scales(z, y, w))


def _best_scales(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Return scale and shift of each class, (2, C), with the least penalized NLL."""
    C = z.shape[1]
    theta = torch.stack([torch.ones(C), torch.zeros(C)]).to(z)  # a, b
    value, gradient, H = _vector_objective(z, y, w, theta)
    for _ in range(MAX_NEWTON_STEPS):
        step = torch.linalg.solve(H, gradient.flatten()).view_as(theta)
        decrease = float((gradient * step).sum()) / 2  # of the quadratic model
        if decrease <= 1e-14 * max(1.0, value):
            break
        t = 1.0
        while (new := _vector_objective(z, y, w, theta - t * step))[
            0
        ] > value - 1e-4 * t * decrease:
            t /= 2
            if t < 1e-10:  # a decrease is lost in rounding
                return theta
        theta = theta - t * step
        value, gradient, H = new
    return theta


def _derivatives(d: Tensor, w: Tensor, a: float) -> tuple[float, float]:
    """Return f'(a) and f''(a) of the mean NLL at the inverse temperature a; d is (n, C).

    The weights w (n,) add up to 1.
    """
    p = (a * d).softmax(1)
    mean = (p * d).sum(1)
    variance = (p * (d - mean[:, None]).square()).sum(1)
    return float(w @ mean), float(w @ variance)


def _vector_objective(
    z: Tensor, y: Tensor, w: Tensor, theta: Tensor
) -> tuple[float, Tensor, Tensor]:
    """Return F, its gradient (2, C) and its Hessian (2C, 2C) at theta = [a, b] (2, C)."""
    a, b = theta
    log_p = (z * a + b).log_softmax(1)
    p = log_p.exp()
    deviation = theta - torch.tensor([[1.0], [0.0]]).to(theta)
    nll = F.nll_loss(log_p, y, reduction="none")
    value = w @ nll + deviation.square().sum() / 2
    r = w[:, None] * p.scatter_add(1, y[:, None], -torch.ones_like(p[:, :1]))
    gradient = torch.stack([(r * z).sum(0), r.sum(0)]) + deviation
    wp, pz = w[:, None] * p, p * z
    zz, z1, one = ((wp * x).sum(0).diag() for x in (z * z, z, torch.ones_like(z)))
    M = torch.cat([pz, p], 1)
    H = torch.cat([torch.cat([zz, z1], 1), torch.cat([z1, one], 1)]) - M.T @ (w[:, None] * M)
    return float(value), gradient, H + torch.eye(len(H)).to(H)


def check_samples(
    logits: Tensor, y: Tensor, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits and weights in float64 and y in int64, on a CPU; raise for unusable ones.

    Samples of weight 0 are left out.
    """
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
    if sample_weight is None:
        return z, y, torch.ones_like(z[:, 0])
    if not isinstance(sample_weight, Tensor) or sample_weight.shape != y.shape:
        got = getattr(sample_weight, "shape", type(sample_weight).__name__)
        raise ValueError(f"sample_weight: expected a tensor of shape {tuple(y.shape)}, got {got}")
    w = sample_weight.detach().cpu().double()
    if not (w.isfinite().all() and w.amin() >= 0 and w.amax() > 0):
        raise ValueError(
            "sample_weight: expected finite numbers >= 0 that are not all 0, got a least of "
            f"{w.amin().item()} and a largest of {w.amax().item()}"
        )
    used = w > 0
    return z[used], y[used], w[used]
