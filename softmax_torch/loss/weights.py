"""Turn the options of cross-entropy into a target and the weights of the three row numbers.

    loss = sum_i  a_i nll_i  +  b_i smooth_i  +  c_i lse_i^2

``functional`` defines the options. Here they become the target (y, u) and the weights (a, b, c),
each the same for all rows, one per row, or None for 0. This is plain torch: autograd differentiates
it in class weights, sample weights and class probabilities too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.loss.arguments import Problem
from softmax_torch.loss.checks import Options
from softmax_torch.maths import (
    RowValues,
    RowWeight,
    RowWeights,
    Target,
    class_view,
    sum_dtype,
    upcast,
)
from softmax_torch.ops.index_loss import IndexLoss

__all__ = ["LossTerms", "SumOverRanks", "index_terms", "loss_of_values", "loss_terms"]

SumOverRanks = Callable[[Tensor], Tensor]
"""A differentiable sum over the ranks that share the rows."""


class LossTerms(NamedTuple):
    """The target and the weights of a loss."""

    target: Target
    weights: RowWeights
    counted: Tensor | None  # False in rows that are ignored; None if there are none
    nan_if_empty: RowWeight  # NaN for a mean over no rows, else 0; None if rows are known to count


def loss_terms(problem: Problem, over_ranks: SumOverRanks | None = None) -> LossTerms:
    """Return the terms of the problem's loss.

    With ``over_ranks`` the rows are this rank's share of those of the mean, and ``problem.shape``
    is the shape of all.
    """
    options, C, rows = problem.options, problem.classes, math.prod(problem.shape)
    eps = options.label_smoothing
    dtype = sum_dtype(problem.dtype)
    w = None if options.weight is None else upcast(options.weight)
    nll: RowWeight = None
    smooth: RowWeight = None
    share: Tensor | None = None  # the weight of a row's class in the mean; None for 1
    if problem.soft:
        u = problem.target
        if eps > 0:
            u = upcast(u) * (1 - eps) + eps / C
        if w is not None:
            u = upcast(u) * class_view(w, u)
        target, smooth = Target(None, u), 1.0
    else:
        y = problem.target
        target = Target(y)
        share = None if w is None else w[y]
        nll = (1 - eps) if share is None else (1 - eps) * share
        if eps > 0:
            target = Target(y, torch.ones(C, dtype=dtype, device=y.device) if w is None else w)
            smooth = eps / C

    count: RowWeight = None if problem.counted is None else problem.counted.to(dtype)
    if options.sample_weight is not None:
        count = _times(count, _summed(options.sample_weight, dtype))
    mean = options.reduction == "mean" and options.normalizer is None
    scale, nan_if_empty = _reciprocal(share, count, rows, over_ranks) if mean else (None, None)
    if share is not None:
        scale = _per_row(scale, count)
    if options.normalizer is not None:
        scale = 1 / _scalar(options.normalizer, dtype, problem.target.device)
    a = None if nll is None else _times(nll, _times(count, scale))
    b = None if smooth is None else _times(smooth, _times(count, scale))
    c: RowWeight = None
    if options.z_loss > 0:
        if mean and share is not None:
            scale, _ = _reciprocal(None, count, rows, over_ranks)
        c = _times(options.z_loss, _times(count, scale))
    return LossTerms(target, RowWeights(a, b, c), problem.counted, nan_if_empty)


def index_terms(classes: int, y: Tensor, loss: IndexLoss) -> tuple[Target, RowWeights]:
    """Return the target and the weights that make a loss of class indices y (N,)."""
    counted = y != loss.ignore_index
    options = Options(
        weight=loss.weight,
        label_smoothing=loss.label_smoothing,
        z_loss=loss.z_loss,
        reduction="mean" if loss.mean else "sum",
    )
    target = torch.where(counted, y, 0)
    # The terms do not depend on the logits: y stands in their place.
    problem = Problem(y, target, False, counted, None, classes, options, loss.dtype, y.shape, False)
    terms = loss_terms(problem)
    return terms.target, terms.weights


def _summed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return weights in the dtype of sums: float32 or float64 as they are, integers as the loss."""
    return upcast(weight) if weight.dtype.is_floating_point else weight.to(dtype)


def _scalar(x: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor | float:
    """Return a number, or a tensor of shape () on this device."""
    return _summed(x, dtype).to(device) if isinstance(x, Tensor) else x


def _times(x: RowWeight, y: RowWeight) -> RowWeight:
    """Return the product of two weights, where None stands for 1."""
    if x is None or y is None:
        return y if x is None else x
    return x * y


def _reciprocal(
    share: RowWeight, count: RowWeight, rows: int, over_ranks: SumOverRanks | None
) -> tuple[RowWeight, RowWeight]:
    """Return 1 over the sum of ``share * count``, and NaN if no row counts, else 0 or None.

    Both are one number per row, or None for 1. As in torch, the mean over no rows is NaN with a
    gradient of 0. Hence two numbers: a scale that stays finite, and a NaN without a gradient, which
    is added to the loss. Where rows count, but their class weights add up to 0, the mean divides by
    0: the scale is infinite, and neither loss nor gradient is finite.
    """
    if count is None:
        if rows == 0:
            return 1.0, torch.nan
        if share is None:
            return 1.0 / rows, None
        assert isinstance(share, Tensor), "one number per row"
        return _total(share, over_ranks).reciprocal(), None
    assert isinstance(count, Tensor), "one number per row"
    empty = (count == 0).all()
    if over_ranks is not None:
        empty = over_ranks(empty.logical_not().int()) == 0
    weight = _times(share, count)
    assert isinstance(weight, Tensor)
    total = torch.where(empty, 1.0, _total(weight, over_ranks))
    return total.reciprocal(), torch.where(empty, torch.nan, 0.0)


def _total(weight: Tensor, over_ranks: SumOverRanks | None) -> Tensor:
    """Return the sum of one number per row, over the rows of all ranks."""
    total = weight.sum()
    return total if over_ranks is None else over_ranks(total)


def _per_row(scale: RowWeight, count: RowWeight) -> RowWeight:
    """Return an infinite scale as 0 in rows that do not count: 0 times infinity is NaN."""
    if not isinstance(scale, Tensor) or count is None:
        return scale
    return torch.where(scale.isinf() & (count == 0), 0.0, scale)


def loss_of_values(values: RowValues, terms: LossTerms, reduction: str) -> Tensor:
    """Return the loss from the row numbers; they include lse if there is a z-loss."""
    nll, smooth, lse = values
    total: Tensor | None = None
    squared = None if lse is None else lse * lse
    for weight, value in zip(terms.weights, (nll, smooth, squared), strict=True):
        if weight is not None and value is not None:
            term = value * weight
            total = term if total is None else total + term
    assert total is not None
    if terms.counted is not None:  # an ignored row gives 0 whatever its numbers are
        total = torch.where(terms.counted, total, 0.0)
    return total if reduction == "none" else total.sum()
