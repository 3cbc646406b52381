"""The mathematics of softmax and cross-entropy, in plain torch: reference and traceable path.

For a row of logits z with C classes, its class index y and a class vector u, U = sum_c u_c:

    p_c    = exp(z_c) / sum_k exp(z_k)                softmax
    lse    = log sum_c exp(z_c)                       log-sum-exp
    nll    = lse - z_y                                negative log-likelihood of class y
    smooth = U * lse - sum_c u_c z_c                  the same averaged over classes with weights u

Every option of cross-entropy is arithmetic on these three numbers a row, so these are all that
needs differentiating. With g_nll, g_smooth, g_lse the gradients of a scalar in them:

    dz_c = (g_nll + U g_smooth + g_lse) p_c - g_nll [c = y] - g_smooth u_c
    du_c = g_smooth (lse - z_c)                        summed over the rows that share u

At the true class the gradient holds p_y - 1, whose digits are gone where p_y rounds to 1. It is
minus the probability of all other classes, and that sum keeps them:

    p_y - 1 = -q,    q = sum_{c != y} p_c,    nll = log(1 + q / p_y)

so nothing here subtracts a probability from 1, or a logit from a rounded log-sum-exp.

Shapes. Classes are dimension 1: z is (N, C), or (N, C, M) where M positions share a sample, as
pixels do. y and the three row numbers are (N,) or (N, M). u is (C,), shared by all rows, or of z's
shape, one vector a row (class probabilities); y is None where only smooth and lse are asked for,
and u is None where smooth is not.

Half-precision logits are computed with in float32, and the row numbers are float32 then; gradients
have the dtype of what they are the gradient of.

These functions are plain torch: autograd, forward AD, vmap and the compiler see through them. They
are the twin of every fast kernel and take the same arguments.

>>> z = torch.tensor([[0.0, 40.0]])
>>> rows = row_values(z, torch.tensor([1]), None)
>>> 4.2e-18 < rows.nll.item() < 4.3e-18  # F.cross_entropy gives 0
True
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "RowValues",
    "log1pexp",
    "row_values",
    "row_vjp",
    "row_vjp_u",
    "total_vjp",
    "upcast",
    "weighted_total",
]

RowWeight = Tensor | float | None
"""What a row number is multiplied by: one for all rows (a float or 0-dimensional), one a row, or
None for 0."""


class RowValues(NamedTuple):
    """The three numbers of each row; one that was not asked for is None."""

    nll: Tensor | None
    smooth: Tensor | None
    lse: Tensor | None


def upcast(x: Tensor) -> Tensor:
    """x in the type sums are taken in: float32 for the half-precision types, else its own."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def class_view(u: Tensor, z: Tensor) -> Tensor:
    """u so that it broadcasts against z: a class vector (C,) goes along dimension 1."""
    return u.view(-1, 1) if u.dim() == 1 and z.dim() == 3 else u


def class_sum(u: Tensor) -> Tensor:
    """U = sum_c u_c: a scalar for a class vector, one number a row otherwise."""
    return u.sum() if u.dim() == 1 else u.sum(1)


def _is_target(z: Tensor, y: Tensor) -> Tensor:
    """The one-hot mask [c = y], of z's shape."""
    classes = torch.arange(z.shape[1], device=z.device)
    return class_view(classes, z) == y.unsqueeze(1)


def row_values(z: Tensor, y: Tensor | None, u: Tensor | None, lse: bool = False) -> RowValues:
    """The row numbers of logits z: nll where y is given, smooth where u is, lse where asked for."""
    z = upcast(z)
    smooth = None if u is None else -(z.log_softmax(1) * class_view(u, z)).sum(1)
    return RowValues(None if y is None else _nll(z, y), smooth, z.logsumexp(1) if lse else None)


def _nll(z: Tensor, y: Tensor) -> Tensor:
    """The negative log-likelihoods, as log(1 + exp(L)) with L = log sum_{c != y} exp(z_c) - z_y.

    That keeps its digits, and those of its derivatives of every order, however certain the
    prediction is. It is spelled out because the second tangents of torch.logsumexp and
    torch.logaddexp are NaN where all rivals of a class are masked by -inf. A row whose largest
    logit is not finite is NaN throughout, as in torch.
    """
    finite = z.detach().amax(1).isfinite()
    z = z * torch.where(finite, 1.0, torch.nan).to(z.dtype).unsqueeze(1)
    rivals = z.masked_fill(_is_target(z, y), -torch.inf)
    largest = rivals.detach().amax(1)
    without_rivals = largest == -torch.inf
    shift = torch.where(without_rivals, 0.0, largest)
    total = (rivals - shift.unsqueeze(1)).exp().sum(1)  # at least 1, or 0 without rivals
    z_y = z.gather(1, y.unsqueeze(1)).squeeze(1)
    # The difference first: it is exact where the two are near, and at 1e4 a sum loses 3 digits.
    L = torch.where(without_rivals, 1.0, total).log() + (shift - z_y)
    return torch.where(without_rivals & finite, 0.0, log1pexp(L))


def log1pexp(L: Tensor) -> Tensor:
    """log(1 + exp(L)) with all its digits; F.softplus is the identity beyond a threshold."""
    # exp of what is not positive; relu and abs would have the wrong slope at L = 0
    positive = L > 0
    return torch.where(positive, L, 0.0) + torch.where(positive, -L, L).exp().log1p()


def row_vjp(
    z: Tensor,
    y: Tensor | None,
    u: Tensor | None,
    g_nll: Tensor | None,
    g_smooth: Tensor | None,
    g_lse: Tensor | None,
    dz: Tensor | None = None,
) -> Tensor:
    """The gradient dz of the rows, of z's shape; a g that is None counts as 0.

    It is written to ``dz`` if that is given, which may be z itself.
    """
    out = dz
    p = upcast(z).softmax(1)
    shared = torch.zeros_like(p[:, 0])  # the factor of p_c that every class has
    if g_smooth is not None and u is not None:
        shared = shared + g_smooth * class_sum(u)
    if g_lse is not None:
        shared = shared + g_lse
    if g_nll is None or y is None:
        dz = shared.unsqueeze(1) * p
    else:
        true = _is_target(z, y)
        p_others = p.masked_fill(true, 0)
        q = p_others.sum(1)
        p_y = p.gather(1, y.unsqueeze(1)).squeeze(1)
        at_y = shared * p_y - g_nll * q
        dz = torch.where(true, at_y.unsqueeze(1), (g_nll + shared).unsqueeze(1) * p_others)
    if g_smooth is not None and u is not None:
        dz = dz - g_smooth.unsqueeze(1) * class_view(u, z)
    return dz.to(z.dtype) if out is None else out.copy_(dz)


def weighted_total(
    z: Tensor,
    y: Tensor | None,
    u: Tensor | None,
    a: RowWeight,
    b: RowWeight,
    c: RowWeight,
    dz: Tensor | None = None,
) -> Tensor:
    """The scalar sum over rows of a nll + b smooth + c lse^2; its gradient is written to dz.

    A weight of 0 leaves a row out of the sum even where its numbers are inf or NaN. dz may be z
    itself, which is then overwritten.
    """
    rows = row_values(z, y, u, lse=c is not None)
    total = upcast(z.new_zeros(()))
    for weight, value in ((a, rows.nll), (b, rows.smooth), (c, _square(rows.lse))):
        if weight is not None and value is not None:
            term = weight * value
            if isinstance(weight, Tensor):
                term = torch.where(weight == 0, 0.0, term)
            total = total + term.sum()
    if dz is not None:
        row_vjp(z, y, u, *total_vjp(z, a, b, c, rows.lse), dz)
    return total


def total_vjp(
    z: Tensor, a: RowWeight, b: RowWeight, c: RowWeight, lse: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients g_nll, g_smooth, g_lse of ``weighted_total`` in the row numbers."""
    ones = upcast(torch.ones_like(z[:, 0]))
    g_nll, g_smooth = (None if w is None else ones * w for w in (a, b))
    return g_nll, g_smooth, None if c is None or lse is None else 2 * c * lse


def _square(value: Tensor | None) -> Tensor | None:
    return None if value is None else value * value


def row_vjp_u(z: Tensor, u: Tensor, g_smooth: Tensor) -> Tensor:
    """The gradient du, of u's shape: g_smooth (lse - z), summed over rows that share u."""
    du = -g_smooth.unsqueeze(1) * upcast(z).log_softmax(1)
    if u.dim() == 1:
        du = du.sum([d for d in range(du.dim()) if d != 1])
    return du.to(u.dtype)
