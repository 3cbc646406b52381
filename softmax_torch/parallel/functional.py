"""Cross-entropy of a linear layer whose classes are split over the ranks of a process group.

Rank r has the rows W_r (C_r, D) and b_r (C_r,) of the layer; the input x (N, D) and the class
indices are the same on all ranks. With m_r, R_r, z_r, S_r what shard r adds to a row (see
``ops.shard_rows``), U_r the sum of its u, and one maximum and one sum over the ranks:

    m   = max_r m_r
    R   = sum_r R_r exp(m_r - m)                       of all classes but y
    z_y = sum_r z_r
    S   = sum_r S_r + U_r (m - m_r),    U = sum_r U_r

    L      = log R + (m - z_y)
    nll    = log(1 + exp(L))
    lse    = m + log(R + exp(z_y - m))                 computed as  m + log R + log(1 + exp(-L))
    smooth = U (lse - m) + S

These are the three row numbers of ``maths``, kept to their digits as there, and ``reductions`` does
the rest, the same on every rank. Without class indices R is over all classes and lse = m + log R.

A row sends, in float32, 4 bytes to the maximum and 4 to 16 to the sum (R; z_y with class indices; S
and U with smoothing or class probabilities). The backward pass sums dx over the ranks, 4 D bytes a
row, where x needs a gradient, and the gradient of class weights where they do; dW and db stay where
they are.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from softmax_torch import reductions
from softmax_torch.maths import RowValues, class_sum, log1pexp, upcast
from softmax_torch.ops import backends
from softmax_torch.ops.linear_rows import Linear
from softmax_torch.ops.shard_rows import shard_numbers
from softmax_torch.parallel.agreement import agreed
from softmax_torch.parallel.shards import ClassShard, from_shards, reduced, to_shards
from softmax_torch.precision import loss_dtype, lowered, lowers, without_autocast
from softmax_torch.reductions import Options

__all__ = ["linear_cross_entropy"]


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
) -> Tensor:
    """``functional.linear_cross_entropy`` with the classes split over ranks.

    Args:
        input: features (..., D), the same on all ranks.
        linear_weight: the rows of this rank's classes (C_r, D), or a DTensor (C, D) with the
            placement Shard(0) on a mesh of one dimension.
        target: class indices in [0, C) (...), the same on all ranks; or class probabilities of this
            rank's classes (..., C_r).
        linear_bias: (C_r,), or a DTensor (C,) as ``linear_weight``; or None.
        shard: which classes this rank has. Needed where linear_weight is no DTensor.
        weight: class weights (C,) of all classes, the same on all ranks: they are few beside the
            layer, and every rank needs that of a row's class.
        ignore_index, reduction, label_smoothing, z_loss: as in ``functional.cross_entropy``.
        sample_weight: (...), the same on all ranks.

    Returns:
        The loss in the dtype of ``input`` (float32 under autocast), the same on all ranks.

    Raises:
        ValueError, IndexError, TypeError, RuntimeError: as ``functional.linear_cross_entropy``, on
            all ranks and with the number of the first rank that failed.
        ValueError: ranks were given different arguments.
        RuntimeError: under torch.compile, torch.func and forward-mode AD, where collectives would
            be lost.

    Logits exist in blocks of rows, at least one row of the shard's logits. Derivatives of all
    orders are right in reverse mode; ranks have to differentiate in the same tensors. Second ones
    need plain local tensors: ``DTensor.to_local`` can be differentiated once.
    """
    if not backends.plain():
        raise RuntimeError("expected plain eager code, got torch.compile, torch.func or forward AD")
    if isinstance(linear_weight, DTensor):
        shard = ClassShard.of_parameter(linear_weight, "linear_weight")
        linear_weight = linear_weight.to_local()
    if isinstance(linear_bias, DTensor):
        linear_bias = linear_bias.to_local()
    if shard is None:
        raise ValueError("shard: expected a ClassShard with local tensors, got None")
    options = Options(ignore_index, reduction, label_smoothing, z_loss)
    linear = Linear(input, linear_weight, linear_bias)
    soft = agreed(linear, target, shard, weight, sample_weight, options)

    dtype = loss_dtype(input, target, soft, weight)
    if lowers(input):
        dtype = torch.promote_types(dtype, torch.float32)
        linear = lowered(linear)
    with without_autocast(input):
        loss = _loss(linear, target, soft, shard, weight, sample_weight, options).to(dtype)
    return loss.reshape(input.shape[:-1]) if reduction == "none" else loss


def _loss(
    linear: Linear,
    target: Tensor,
    soft: bool,
    shard: ClassShard,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    options: Options,
) -> Tensor:
    """The loss of arguments that fit and that ranks agree on."""
    group, start, stop, C = shard
    x, W, b = linear
    linear = Linear(x.reshape(-1, x.shape[-1]), W, b)
    N = math.prod(x.shape[:-1])
    if sample_weight is not None:
        sample_weight = sample_weight.reshape(N)
    if soft:
        w = None if weight is None else to_shards(weight, group)[start:stop]
        goal = reductions.class_probabilities(target.reshape(N, stop - start), w, options, C)
        u = goal.u
    else:
        y = target.reshape(N)
        goal = reductions.class_indices(y, C, weight, options, upcast(x[:0]).dtype)
        u = None if goal.u is None else to_shards(goal.u, group)[start:stop]
    values = _row_values(linear, goal.y, u, shard)
    return reductions.loss_of_rows(values, N, goal, sample_weight, options)


def _row_values(linear: Linear, y: Tensor | None, u: Tensor | None, shard: ClassShard) -> RowValues:
    """The row numbers over all classes, of the y and the shard's part of u: see the equations."""
    group, start, stop, _ = shard
    x, weight, bias = linear
    if y is None:
        at = torch.full((len(x),), -1, device=x.device)
    else:
        at = torch.where((y >= start) & (y < stop), y - start, -1)
    own = shard_numbers(Linear(to_shards(x, group), weight, bias), at, u)

    largest = reduced(own.largest, dist.ReduceOp.MAX, group)
    without_rivals = largest == -torch.inf  # the one class there is, is y
    m = torch.where(without_rivals, 0.0, largest)
    columns = [own.rivals * torch.where(own.largest == -torch.inf, 0.0, (own.largest - m).exp())]
    if y is not None:
        columns.append(own.z_y)
    if u is not None:
        own_m = torch.where(own.largest == -torch.inf, 0.0, own.largest)
        own_U = class_sum(upcast(u)).to(m.dtype)
        columns += [own.spread + own_U * (m - own_m), own_U.expand_as(m)]
    sums = iter(from_shards(torch.stack(columns), group).unbind())

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
