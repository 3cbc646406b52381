"""The formulas of softmax and cross-entropy in plain torch: the reference, and the traceable path.

For a row of logits z with C classes, its class index y and a class vector u, U = sum_c u_c:

    p_c    = exp(z_c) / sum_k exp(z_k)                softmax
    lse    = log sum_c exp(z_c)                       log-sum-exp
    nll    = lse - z_y                                negative log-likelihood of class y
    smooth = U * lse - sum_c u_c z_c                  the same averaged over classes with weights u

Every option of cross-entropy is arithmetic on these three numbers per row, so only they need a
derivative. With g_nll, g_smooth, g_lse the gradients of a scalar in them:

    dz_c = (g_nll + U g_smooth + g_lse) p_c - g_nll [c = y] - g_smooth u_c
    du_c = g_smooth (lse - z_c)                        summed over the rows that share u

At the true class the gradient contains p_y - 1, which loses its digits where p_y rounds to 1. It
equals minus the sum of the other classes' probabilities, and that sum keeps them:

    p_y - 1 = -q,    q = sum_{c != y} p_c,    nll = log(1 + q / p_y)

so nothing here subtracts a probability from 1, or a logit from a rounded log-sum-exp.

Shapes. Classes are dimension 1: z is (N, C), or (N, C, M) where M positions share a sample, as
pixels do. A ``Target`` holds y and u. y and the three row numbers are (N,) or (N, M). u is (C,), a
class vector shared by all rows, or has z's shape, one vector a row (class probabilities). Without y
there is no nll, without u no smooth.

Half-precision logits are upcast: the row numbers are float32 then. A gradient has the dtype of the
tensor it belongs to.

These functions are plain torch: autograd, forward AD, vmap and the compiler see through them. Fast
functions in ``ops`` have the names and arguments of their plain twins here.

>>> z = torch.tensor([[0.0, 40.0]])
>>> rows = row_values(z, Target(torch.tensor([1])))
>>> 4.2e-18 < rows.nll.item() < 4.3e-18  # F.cross_entropy gives 0
True
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "LogitTransform",
    "RowStatistics",
    "RowValues",
    "RowWeight",
    "RowWeights",
    "Target",
    "class_sum",
    "class_view",
    "is_target",
    "log1pexp",
    "row_statistics",
    "row_values",
    "row_vjp",
    "row_vjp_u",
    "sum_dtype",
    "total_vjp",
    "upcast",
    "value_gradients",
    "weighted_total",
]

RowWeight = Tensor | float | None
"""The weight of a row number: the same for all rows (a float or a 0-dimensional tensor), one per
row, or None for 0."""

GATHERING = ("cpu",)
"""The devices that gather the logits of the targets; others sum them with a mask.

The gradient of ``gather`` is a scatter, for which the compiler of a GPU makes two kernels of their
own, with N C numbers more to write and to read. The compiled sum has none. A CPU takes up to 1.1
times as long with it, and 1.3 times where nothing is compiled.
"""


class Target(NamedTuple):
    """The target of a set of rows: class indices y, a class vector u, or both."""

    y: Tensor | None = None
    u: Tensor | None = None

    def rows(self, at: slice) -> Target:
        """Return the target of the samples ``at``; a class vector is shared by all."""
        y, u = self
        return Target(None if y is None else y[at], u if u is None or u.dim() == 1 else u[at])


class RowValues(NamedTuple):
    """The three numbers of each row, or their gradients; None where a number is not needed."""

    nll: Tensor | None = None
    smooth: Tensor | None = None
    lse: Tensor | None = None

    def rows(self, at: slice) -> RowValues:
        """Return the numbers of the samples ``at``."""
        return RowValues(*(None if number is None else number[at] for number in self))

    @classmethod
    def joined(cls, blocks: list[RowValues]) -> RowValues:
        """Return the numbers of blocks of samples as those of all."""
        return cls(*_joined(blocks))


class RowWeights(NamedTuple):
    """The weights of the sum over rows of a nll + b smooth + c lse^2."""

    a: RowWeight = None
    b: RowWeight = None
    c: RowWeight = None

    def rows(self, at: slice) -> RowWeights:
        """Return the weights of the samples ``at``; one number is shared by all."""
        return RowWeights(*(w[at] if isinstance(w, Tensor) and w.dim() > 0 else w for w in self))


class RowStatistics(NamedTuple):
    """Numbers of each row that have no derivative here.

    With the largest logit m = z_t, t the first class that has it, and rest = sum_{c != t} e_c of
    e_c = exp(z_c - m):

        lse     = m + log(1 + rest)
        entropy = -sum_c p_c log p_c = log(1 + rest) - sum_c e_c (z_c - m) / (1 + rest)
        argmax  = t
        rank    = the number of classes with a larger logit than y, or an equal one and c < y

    All terms of the entropy are positive, so that it keeps its digits in rows that are nearly
    certain. A row with NaN has its place as argmax, as in torch, and C as rank.
    """

    lse: Tensor
    entropy: Tensor
    argmax: Tensor  # int64
    rank: Tensor | None  # int64; None without y

    @classmethod
    def joined(cls, blocks: list[RowStatistics]) -> RowStatistics:
        """Return the statistics of blocks of samples as those of all."""
        lse, entropy, argmax, rank = _joined(blocks)
        assert lse is not None, "every block has these three"
        assert entropy is not None
        assert argmax is not None
        return cls(lse, entropy, argmax, rank)


def _joined(blocks: Sequence[tuple[Tensor | None, ...]]) -> list[Tensor | None]:
    """Return the columns of blocks of samples, each as one tensor; None where blocks have none."""
    if len(blocks) == 1:
        return list(blocks[0])
    columns = zip(*blocks, strict=True)
    return [None if c[0] is None else torch.cat(c) for c in columns]


class LogitTransform(NamedTuple):
    """A function of the logits that is applied before the softmax, element by element.

    z' = scale softcap tanh(z / softcap), or scale z without a softcap.
    """

    softcap: float | None = None
    scale: Tensor | float = 1.0

    def apply(self, z: Tensor) -> Tensor:
        """Return z', in the dtype that logits are summed in."""
        z, scale = self._upcast(z)
        if self.softcap is None:
            return z * scale
        return (z / self.softcap).tanh() * (self.softcap * scale)

    def with_slope(self, z: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return z' and its derivative in z."""
        z, scale = self._upcast(z)
        if self.softcap is None:
            return z * scale, scale
        h = (z / self.softcap).tanh()
        return h * (self.softcap * scale), (1 - h * h) * scale

    def _upcast(self, z: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return z and the scale in the dtype that logits are summed in."""
        z, scale = upcast(z), self.scale
        return z, scale.to(z) if isinstance(scale, Tensor) else scale


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that numbers of this dtype are summed in: float64 or float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def upcast(x: Tensor) -> Tensor:
    """Return x in the dtype it is summed in: float32 for half precision, else unchanged."""
    return x.to(sum_dtype(x.dtype))


def class_view(u: Tensor, z: Tensor) -> Tensor:
    """Return u in a shape that broadcasts against z: a class vector (C,) lies along dimension 1."""
    return u.view(-1, 1) if u.dim() == 1 and z.dim() == 3 else u


def class_sum(u: Tensor) -> Tensor:
    """Return U = sum_c u_c: a scalar for a class vector, otherwise one number per row."""
    return u.sum() if u.dim() == 1 else u.sum(1)


def is_target(z: Tensor, y: Tensor) -> Tensor:
    """Return the one-hot mask [c = y], of z's shape."""
    classes = torch.arange(z.shape[1], device=z.device)
    return class_view(classes, z) == y.unsqueeze(1)


def row_values(z: Tensor, target: Target, lse: bool = False) -> RowValues:
    """Return the row numbers of logits z: nll if there is y, smooth if there is u, lse if asked."""
    y, u = target
    z = upcast(z)
    smooth = None if u is None else -(z.log_softmax(1) * class_view(u, z)).sum(1)
    return RowValues(None if y is None else _nll(z, y), smooth, z.logsumexp(1) if lse else None)


def _nll(z: Tensor, y: Tensor) -> Tensor:
    """Return the NLLs as log(1 + exp(L)) with L = log sum_{c != y} exp(z_c) - z_y.

    This form and its derivatives of every order keep their digits however certain the prediction
    is. It is spelled out because the second tangents of torch.logsumexp and torch.logaddexp are NaN
    where all rivals of a class are masked by -inf. A row whose largest logit is not finite is NaN
    throughout, as in torch.
    """
    finite = z.detach().amax(1).isfinite()
    z = z * torch.where(finite, 1.0, torch.nan).to(z.dtype).unsqueeze(1)
    true = is_target(z, y)
    rivals = z.masked_fill(true, -torch.inf)
    largest = rivals.detach().amax(1)
    without_rivals = largest == -torch.inf
    shift = torch.where(without_rivals, 0.0, largest)
    total = (rivals - shift.unsqueeze(1)).exp().sum(1)  # at least 1, or 0 without rivals
    # Without rivals log(0) would do, but its derivative times 0 is NaN.
    log_total = torch.where(without_rivals, 1.0, total).log()
    log_total = torch.where(without_rivals, -torch.inf, log_total)
    z_y = _target_logit(z, y, true)
    # shift - z_y is exact where the two are near; log + shift would lose 3 digits at 1e4.
    return log1pexp(log_total + (shift - z_y))


def _target_logit(z: Tensor, y: Tensor, true: Tensor) -> Tensor:
    """Return z at y; true is the mask of the target."""
    if z.device.type in GATHERING:
        return z.gather(1, y.unsqueeze(1)).squeeze(1)
    return torch.where(true, z, 0.0).sum(1)


def log1pexp(L: Tensor) -> Tensor:
    """Return log(1 + exp(L)) to full precision; F.softplus returns L above a threshold."""
    # exp of non-positive numbers only; relu and abs would have the wrong slope at L = 0
    positive = L > 0
    return torch.where(positive, L, 0.0) + torch.where(positive, -L, L).exp().log1p()


def row_statistics(z: Tensor, y: Tensor | None = None) -> RowStatistics:
    """Return the statistics of logits z; the rank if there are class indices y."""
    z = upcast(z.detach())
    m, argmax = z.amax(1), z.argmax(1)
    d = z - m.unsqueeze(1)
    e = d.exp()
    weighted = torch.where(e == 0, 0.0, e * d).sum(1)
    rest = e.masked_fill(is_target(z, argmax), 0).sum(1)
    log_s = rest.log1p()
    lse = torch.where(m.isinf(), m, m + log_s)
    rank = None
    if y is not None:
        z_y, classes = z.gather(1, y.unsqueeze(1)), torch.arange(z.shape[1], device=z.device)
        lower = class_view(classes, z) < y.unsqueeze(1)
        rank = ((z > z_y) | ((z == z_y) & lower)).sum(1)
        rank = torch.where(m.isnan(), z.shape[1], rank)
    return RowStatistics(lse, log_s - weighted / (1 + rest), argmax, rank)


def row_vjp(z: Tensor, target: Target, g: RowValues, dz: Tensor | None = None) -> Tensor:
    """Return the gradient dz, of z's shape, for the gradients g of the row numbers.

    A g that is None counts as 0. The result is written to ``dz`` if given, which may be z itself.
    """
    (y, u), (g_nll, g_smooth, g_lse), out = target, g, dz
    p = upcast(z).softmax(1)
    shared = torch.zeros_like(p[:, 0])  # the factor of p_c that every class has
    if g_smooth is not None and u is not None:
        shared = shared + g_smooth * class_sum(u)
    if g_lse is not None:
        shared = shared + g_lse
    if g_nll is None or y is None:
        dz = shared.unsqueeze(1) * p
    else:
        true = is_target(z, y)
        p_others = p.masked_fill(true, 0)
        q = p_others.sum(1)
        p_y = p.gather(1, y.unsqueeze(1)).squeeze(1)
        at_y = shared * p_y - g_nll * q
        dz = torch.where(true, at_y.unsqueeze(1), (g_nll + shared).unsqueeze(1) * p_others)
    if g_smooth is not None and u is not None:
        dz = dz - g_smooth.unsqueeze(1) * class_view(u, z)
    return dz.to(z.dtype) if out is None else out.copy_(dz)


def row_vjp_u(z: Tensor, u: Tensor, g_smooth: Tensor) -> Tensor:
    """Return the gradient du, of u's shape: g_smooth (lse - z), summed over rows that share u."""
    du = -g_smooth.unsqueeze(1) * upcast(z).log_softmax(1)
    if u.dim() == 1:
        du = du.sum([d for d in range(du.dim()) if d != 1])
    return du.to(u.dtype)


def weighted_total(
    z: Tensor, target: Target, weights: RowWeights, dz: Tensor | None = None
) -> Tensor:
    """Return the scalar sum over rows of a nll + b smooth + c lse^2; write its gradient to dz.

    A weight of 0 leaves a row out of the sum even where its numbers are inf or NaN. dz may be z
    itself, which is then overwritten.
    """
    a, b, c = weights
    rows = row_values(z, target, lse=c is not None)
    squared = None if rows.lse is None else rows.lse * rows.lse
    total = upcast(z.new_zeros(()))
    for weight, value in ((a, rows.nll), (b, rows.smooth), (c, squared)):
        if weight is not None and value is not None:
            term = weight * value
            if isinstance(weight, Tensor):
                term = torch.where(weight == 0, 0.0, term)
            total = total + term.sum()
    if dz is not None:
        row_vjp(z, target, value_gradients(z, weights, rows.lse), dz)
    return total


def value_gradients(z: Tensor, weights: RowWeights, lse: Tensor | None) -> RowValues:
    """Return the gradients of ``weighted_total`` in the row numbers."""
    a, b, c = weights
    ones = upcast(torch.ones_like(z[:, 0]))
    g_nll, g_smooth = (None if w is None else ones * w for w in (a, b))
    return RowValues(g_nll, g_smooth, None if c is None or lse is None else 2 * c * lse)


def total_vjp(z: Tensor, target: Target, weights: RowWeights, g: Tensor) -> Tensor:
    """Return the gradient dz of g times the weighted total, differentiable in z and g."""
    lse = None if weights.c is None else upcast(z).logsumexp(1)
    gradients = value_gradients(z, weights, lse)
    return row_vjp(z, target, RowValues(*(None if v is None else g * v for v in gradients)))
