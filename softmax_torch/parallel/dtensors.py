"""Cross-entropy of DTensors, from the local parts of logits or of a linear layer.

``layout`` says which ranks share rows and which share classes. With the rows i of a rank:

    loss = sum_i a_i nll_i + b_i smooth_i + c_i lse_i^2        summed over the ranks that share rows

The weights (a, b, c) of ``loss.weights`` contain the mean's total, itself a sum over those ranks.
The row numbers are those of ``ops.rows`` and ``ops.linear_rows``; where classes are split, those of
``parallel.functional``, which sums over the ranks that share classes.

A call sends the comparison of arguments (``dtensor_arguments``), one number for the loss, and with
ignored rows, class weights or sample weights two to four for the mean. The backward pass sums the
gradients of whatever ranks share: parameters, class weights, and plain tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from softmax_torch.loss.arguments import Problem
from softmax_torch.loss.checks import Options
from softmax_torch.loss.compute import compute
from softmax_torch.loss.route import route
from softmax_torch.loss.weights import LossTerms, loss_terms
from softmax_torch.maths import sum_dtype
from softmax_torch.ops.linear_rows import Linear
from softmax_torch.parallel.dtensor_arguments import linear_problem, logits_problem
from softmax_torch.parallel.functional import sharded_loss
from softmax_torch.parallel.layout import Layout
from softmax_torch.parallel.shards import from_shards, to_shards

__all__ = ["linear_loss", "logits_loss"]


def logits_loss(input: Tensor, target: Tensor, options: Options) -> Tensor:
    """Return the loss of logits: ``functional.cross_entropy`` if an argument is a DTensor."""
    layout, rows, problem = logits_problem(input, target, options)
    return layout.distributed(_loss(layout, rows, problem), rows)


def linear_loss(linear: Linear, target: Tensor, options: Options) -> Tensor:
    """Return the loss of a layer: ``functional.linear_cross_entropy`` with a DTensor.

    It is a DTensor if the input of the layer is one.
    """
    layout, rows, problem = linear_problem(linear, target, options)
    loss = _loss(layout, rows, problem)
    return layout.distributed(loss, rows) if isinstance(linear.x, DTensor) else loss


def _loss(layout: Layout, rows: torch.Size, problem: Problem) -> Tensor:
    """Return the loss, or this rank's part of a loss of one number per row.

    ``rows`` is the shape of the unreduced loss of all ranks.
    """
    if problem.autocast:
        with torch.autocast(problem.target.device.type, enabled=False):
            return _loss(layout, rows, problem._replace(autocast=False))
    sharers = layout.groups(layout.by_row)
    if sharers and not problem.soft and problem.counted is None:
        # Another rank may ignore rows, and then all take part in the sum of those that count.
        counted = torch.ones_like(problem.target, dtype=torch.bool)
        problem = problem._replace(counted=counted)
    dtype = problem.dtype
    problem = problem._replace(dtype=sum_dtype(dtype))  # half precision is rounded once, at the end

    def over_ranks(total: Tensor) -> Tensor:
        return to_shards(from_shards(total, *sharers), *sharers)

    def terms_of(problem: Problem) -> LossTerms:
        return loss_terms(problem._replace(shape=rows), over_ranks if sharers else None)

    if any(layout.classes):
        at, groups = layout.own_classes(problem.classes), layout.groups(layout.classes)
        loss = sharded_loss(problem, at, groups, terms_of)
    else:
        loss = compute(problem, route(problem), terms_of(problem))
    if problem.options.reduction != "none":
        loss = from_shards(loss, *sharers)
    return loss.to(dtype)
