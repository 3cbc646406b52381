"""Cross-entropy of a linear layer whose classes are split over the ranks of a process group.

Rank r has the rows W_r (C_r, D) and b_r (C_r,) of the layer; the input x (N, D) and the class
indices are the same on all ranks. With m_r, R_r, z_r, S_r the numbers that shard r contributes to a
row (``shard_maths.ShardValues``), U_r the sum of its u, and one maximum and one sum over the ranks:

    m   = max_r m_r
    R   = sum_r R_r exp(m_r - m)                       of all classes but y
    z_y = sum_r z_r
    S   = sum_r S_r + U_r (m - m_r),    U = sum_r U_r

    L      = log R + (m - z_y)
    nll    = log(1 + exp(L))
    lse    = m + log(R + exp(z_y - m))                 computed as  m + log R + log(1 + exp(-L))
    smooth = U (lse - m) + S

These are the three row numbers of ``maths``, with all their digits as there. ``loss.weights`` makes
the loss from them, the same on every rank. Without class indices R is over all classes and
lse = m + log R.

Per row a rank sends, in float32, 4 bytes for the maximum and 4 to 16 for the sum (R; z_y with class
indices; S and U with smoothing or class probabilities). The backward pass sums dx over the ranks,
4 D bytes per row, if x needs a gradient, and the gradient of class weights if they need one; dW and
db stay on their ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from softmax_torch.loss.arguments import Problem
from softmax_torch.loss.checks import Options
from softmax_torch.loss.weights import LossTerms, loss_of_values, loss_terms
from softmax_torch.maths import (
    LogitTransform,
    RowValues,
    Target,
    class_sum,
    log1pexp,
    upcast,
)
from softmax_torch.ops import modes
from softmax_torch.ops.linear_rows import Linear
from softmax_torch.ops.shard_rows import linear_shard_values, logits_shard_values
from softmax_torch.parallel.rank_checks import parse_on_all_ranks
from softmax_torch.parallel.shards import ClassShard, from_shards, reduced, to_shards
from softmax_torch.shard_maths import ShardValues, shard_shift

__all__ = ["linear_cross_entropy", "sharded_loss"]


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    shard: ClassShard | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float | Tensor = 1.0,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Return ``functional.linear_cross_entropy`` with the classes split over ranks.

    Args:
        input: features (..., D), the same on all ranks.
        linear_weight: the rows of this rank's classes (C_r, D), or a DTensor (C, D) with the
            placement Shard(0) on a mesh of one dimension.
        target: class indices in [0, C) (...), the same on all ranks; or class probabilities of this
            rank's classes (..., C_r).
        linear_bias: (C_r,), or a DTensor (C,) as ``linear_weight``; or None.
        shard: the classes of this rank; needed unless linear_weight is a DTensor.
        weight: class weights (C,) of all classes, the same on all ranks: they are small beside the
            layer, and every rank needs the weight of a row's class.
        ignore_index, reduction, label_smoothing, z_loss, softcap: as in
            ``functional.cross_entropy``.
        logit_scale, normalizer: as in ``functional.cross_entropy``; the same on all ranks.
        sample_weight: (...), the same on all ranks.

    Returns:
        The loss in the dtype of ``input`` (float32 under autocast), the same on all ranks.

    Raises:
        ValueError, IndexError, TypeError, RuntimeError: as ``functional.linear_cross_entropy``. Up
            to the first call in a group that is right on all ranks, all ranks raise the error of
            the first rank that failed, with its number.
        ValueError: in the same calls, ranks were given different arguments. Later calls rely on
            equal arguments and do not compare them.
        RuntimeError: under torch.compile, torch.func and forward-mode AD, where collectives would
            be lost.

    Logits of the shard are held in blocks of at least one row. Derivatives of every
    order are right in reverse mode; all ranks must differentiate in the same tensors. Second
    derivatives need plain local tensors: ``DTensor.to_local`` can be differentiated only once.
    """
    if not modes.plain():
        raise RuntimeError("expected plain eager code, got torch.compile, torch.func or forward AD")
    if isinstance(linear_weight, DTensor):
        shard = ClassShard.of_parameter(linear_weight, "linear_weight")
        linear_weight = linear_weight.to_local()
    if isinstance(linear_bias, DTensor):
        linear_bias = linear_bias.to_local()
    if shard is None:
        raise ValueError("shard: expected a ClassShard with local tensors, got None")
    options = Options(
        weight,
        sample_weight,
        ignore_index,
        reduction,
        label_smoothing,
        z_loss,
        softcap,
        logit_scale,
        normalizer,
    )
    linear = Linear(input, linear_weight, linear_bias)
    problem = parse_on_all_ranks(linear, target, shard, options)
    at = slice(shard.start, shard.stop)
    if not problem.autocast:
        return sharded_loss(problem, at, (shard.group,))
    with torch.autocast(input.device.type, enabled=False):
        return sharded_loss(problem, at, (shard.group,))


def sharded_loss(
    problem: Problem,
    at: slice,
    groups: Sequence[dist.ProcessGroup],
    terms_of: Callable[[Problem], LossTerms] = loss_terms,
) -> Tensor:
    """Return the loss of a problem whose layer, or logits (N, C_r), have the classes ``at``.

    The ranks of ``groups`` have the other classes. ``terms_of`` makes the terms of the loss.
    """
    source, options = problem.source, problem.options
    if problem.soft and options.weight is not None:  # the target has only the shard's classes
        own = to_shards(options.weight, *groups)[at]
        problem = problem._replace(options=options._replace(weight=own))
    terms = terms_of(problem)
    y, u = terms.target
    if not problem.soft and u is not None:
        u = to_shards(u, *groups)[at]
    rows = len(source.x if isinstance(source, Linear) else source)
    if y is None:
        own_y = torch.full((rows,), -1, device=problem.target.device)
    else:
        own_y = torch.where((y >= at.start) & (y < at.stop), y - at.start, -1)
    own_target = Target(own_y, u)
    numbers = _shard_values(source, own_target, problem.transform, groups)
    values = _row_values(numbers, Target(y, u), groups)
    loss = loss_of_values(values, terms, options.reduction)
    if terms.nan_if_empty is not None:
        loss = loss + terms.nan_if_empty
    loss = loss.to(problem.dtype)
    return loss.reshape(problem.shape) if options.reduction == "none" else loss


def _shard_values(
    source: Tensor | Linear,
    target: Target,
    transform: LogitTransform | None,
    groups: Sequence[dist.ProcessGroup],
) -> ShardValues:
    """Return the numbers of the shard, whose logits are transformed first.

    The ranks' gradients of a scale are summed. A layer whose logits are only scaled is the layer of
    the scaled input and bias. Logits are kept where the scale of capped logits needs a gradient.
    """
    scale = None if transform is None else transform.scale
    if isinstance(scale, Tensor):
        scale = to_shards(scale, *groups)
        transform = transform and transform._replace(scale=scale)
    if isinstance(source, Tensor):
        z = source if transform is None else transform.apply(source)
        return logits_shard_values(z, target)
    linear = source._replace(x=to_shards(source.x, *groups))
    if transform is not None and scale is not None:
        if transform.softcap is None:
            x, weight, bias = linear
            linear = Linear(x * scale, weight, None if bias is None else bias * scale)
            return linear_shard_values(linear, target)
        if isinstance(scale, Tensor) and scale.requires_grad and torch.is_grad_enabled():
            return logits_shard_values(transform.apply(linear.logits()), target)
    return linear_shard_values(linear, target, transform)


def _row_values(own: ShardValues, target: Target, groups: Sequence[dist.ProcessGroup]) -> RowValues:
    """Return the row numbers over all classes, by the equations above; u is the shard's part."""
    y, u = target
    largest = reduced(own.largest, dist.ReduceOp.MAX, *groups)
    without_rivals = largest == -torch.inf  # y is the only class
    m = shard_shift(largest)
    columns = [own.rivals * torch.where(own.largest == -torch.inf, 0.0, (own.largest - m).exp())]
    if y is not None:
        columns.append(own.z_y)
    if u is not None:
        own_U = class_sum(upcast(u)).to(m.dtype)
        columns += [own.spread + own_U * (m - shard_shift(own.largest)), own_U.expand_as(m)]
    sums = iter(from_shards(torch.stack(columns), *groups).unbind())

    log_R = torch.where(without_rivals, 1.0, next(sums)).log()
    if y is None:
        nll, above = None, log_R  # lse - m
    else:
        z_y = next(sums)
        L = log_R + (m - z_y)
        nll = torch.where(without_rivals, 0.0, log1pexp(L))
        above = torch.where(without_rivals, z_y - m, log_R + log1pexp(-L))
    smooth = None
    if u is not None:
        S, U = next(sums), next(sums)
        smooth = U * above + S
    return RowValues(nll, smooth, m + above)
