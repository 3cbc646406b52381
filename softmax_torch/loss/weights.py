"""From the options of cross-entropy to weights of the three row numbers, and to one loss.

    loss = sum_i  a_i nll_i  +  b_i smooth_i  +  c_i lse_i^2

``functional`` gives the meaning of the options. Here they become the target (y, u) and the weights
(a, b, c), each one number for all rows, one a row, or None for 0; plain torch, so that autograd
differentiates in class weights, sample weights and class probabilities too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from softmax_torch.loss import arguments as checks
from softmax_torch.maths import RowValues, RowWeight, class_view, upcast
from softmax_torch.ops import backends, linear_rows, rows
from softmax_torch.ops.linear_rows import Linear

__all__ = ["Goal", "Options", "class_indices", "class_probabilities", "loss", "loss_of_rows"]


class Options(NamedTuple):
    """The arguments of cross-entropy that are not tensors."""

    ignore_index: int
    reduction: str
    label_smoothing: float
    z_loss: float


class Goal(NamedTuple):
    """What is asked of the rows: their targets, and what each term of their loss weighs."""

    y: Tensor | None  # class index of each row, a valid one where the row is ignored
    u: Tensor | None  # class vector of the smooth term
    nll: RowWeight  # weight of nll
    smooth: RowWeight  # weight of smooth
    share: Tensor | None  # what each row counts in the mean, None for 1
    counts: Tensor | None  # 1 for a row that counts, 0 for an ignored one, None for all 1


def class_indices(
    y: Tensor, C: int, weight: Tensor | None, options: Options, dtype: torch.dtype
) -> Goal:
    """The goal of class indices y, one a row, in floating-point type ``dtype``.

    An IndexError where an index is out of range.
    """
    y = y.to(torch.int64)
    counts = None
    if checks.class_indices(y, C, options.ignore_index):
        valid = y != options.ignore_index
        y = torch.where(valid, y, 0)
        counts = valid.to(dtype)
    eps = options.label_smoothing
    w = None if weight is None else upcast(weight)
    share = None if w is None else w[y]
    nll = (1 - eps) if share is None else (1 - eps) * share
    if eps == 0:
        return Goal(y, None, nll, None, share, counts)
    u = torch.ones(C, dtype=dtype, device=y.device) if w is None else w
    return Goal(y, u, nll, eps / C, share, counts)


def class_probabilities(
    t: Tensor, weight: Tensor | None, options: Options, C: int | None = None
) -> Goal:
    """The goal of class probabilities t, of the shape of the logits.

    C is the number of all classes where t has some of them only.
    """
    eps = options.label_smoothing
    u = t
    if eps > 0:
        u = upcast(u) * (1 - eps) + eps / (t.shape[1] if C is None else C)
    if weight is not None:
        u = upcast(u) * upcast(class_view(weight, t))
    return Goal(None, u, None, 1.0, None, None)


def loss(
    source: Tensor | Linear, N: int, goal: Goal, sample_weight: Tensor | None, options: Options
) -> Tensor:
    """The loss of N rows, logits or those of a linear layer: one a row, or their sum or mean."""
    y, u = goal.y, goal.u
    weights, empty = _weights(N, goal, sample_weight, options)
    a, b, c = weights
    rule: Any = rows if isinstance(source, Tensor) else linear_rows
    total: Tensor
    if options.reduction != "none" and N > 0 and fused(u, a, b, c):
        total = rule.weighted_total(source, y, u, a, b, c)
    else:
        values = rule.row_values(source, y, u, lse=c is not None)
        total = _reduced(values, weights, goal.counts, options.reduction)
    return total if empty is None else total + empty


def loss_of_rows(
    values: RowValues, N: int, goal: Goal, sample_weight: Tensor | None, options: Options
) -> Tensor:
    """``loss`` of N rows whose numbers are known, lse among them where there is a z-loss."""
    weights, empty = _weights(N, goal, sample_weight, options)
    total = _reduced(values, weights, goal.counts, options.reduction)
    return total if empty is None else total + empty


def _weights(
    N: int, goal: Goal, sample_weight: Tensor | None, options: Options
) -> tuple[tuple[RowWeight, RowWeight, RowWeight], RowWeight]:
    """The weights (a, b, c) of the row numbers, and what to add to the loss, None for nothing."""
    _, _, nll, smooth, share, valid = goal
    counts = _times(valid, None if sample_weight is None else upcast(sample_weight))
    mean = options.reduction == "mean"
    scale, empty = _reciprocal(_times(share, counts), N) if mean else (None, None)
    a = None if nll is None else _times(nll, _times(counts, scale))
    b = None if smooth is None else _times(smooth, _times(counts, scale))
    c: RowWeight = None
    if options.z_loss > 0:
        if mean and share is not None:
            scale, _ = _reciprocal(counts, N)
        c = _times(options.z_loss, _times(counts, scale))
    return (a, b, c), empty


def fused(*tensors: RowWeight) -> bool:
    """Whether the scalar rules apply: plain eager code, and none of these needs a gradient."""
    if not backends.plain():
        return False
    return not torch.is_grad_enabled() or not any(
        isinstance(t, Tensor) and t.requires_grad for t in tensors
    )


def _times(x: RowWeight, y: RowWeight) -> RowWeight:
    """The product of two weights, where None stands for 1."""
    if x is None or y is None:
        return y if x is None else x
    return x * y


def _reciprocal(count: RowWeight, N: int) -> tuple[RowWeight, RowWeight]:
    """One over the sum of ``count`` over N rows, and what to add to a mean over nothing: NaN.

    torch's mean over rows that are all ignored is NaN with a gradient of 0. Hence two numbers: a
    scale that stays finite, and the NaN apart from it, where no gradient passes.
    """
    if count is None:
        return (1.0 / N, None) if N > 0 else (1.0, torch.nan)
    assert isinstance(count, Tensor), "a count is one number a row"
    total = count.sum()
    nothing = total == 0
    return torch.where(nothing, 1.0, total).reciprocal(), torch.where(nothing, torch.nan, 0.0)


def _reduced(
    values: RowValues, weights: tuple[RowWeight, ...], valid: Tensor | None, reduction: str
) -> Tensor:
    total = _combined(values, weights, valid)
    return total if reduction == "none" else total.sum()


def _combined(values: RowValues, weights: tuple[RowWeight, ...], valid: Tensor | None) -> Tensor:
    """a nll + b smooth + c lse^2 of each row; an ignored row gives 0 whatever its numbers are."""
    nll, smooth, lse = values
    terms = (nll, smooth, None if lse is None else lse * lse)
    total: Tensor | None = None
    for weight, value in zip(weights, terms, strict=True):
        if weight is not None and value is not None:
            term = value * weight
            total = term if total is None else total + term
    assert total is not None
    return total if valid is None else torch.where(valid == 0, 0.0, total)
