"""Cross-entropy of logits, and of a linear layer, with torch's semantics and a fused gradient.

    loss_i = (1 - eps) w_{y_i} nll_i + (eps / C) smooth_i + zeta lse_i^2        class indices
    loss_i = smooth_i with u_i = w * ((1 - eps) t_i + eps / C)                  class probabilities

with label smoothing eps, class weights w, z-loss zeta and the row numbers nll, smooth and lse of
``softmax_torch.maths``. A sample weight s_i multiplies loss_i. The mean divides by the sum of
s_i w_{y_i} over the rows that count (class indices) or of s_i (class probabilities); the z-loss is
averaged by s_i alone.

>>> import torch
>>> z = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], requires_grad=True)
>>> loss = cross_entropy(z, torch.tensor([0, 2]))
>>> round(loss.item(), 4)
0.8606
>>> loss.backward()
>>> z.grad.sum().abs().item() < 1e-6
True
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from softmax_torch import checks, reductions
from softmax_torch.maths import upcast
from softmax_torch.ops import backends, rows
from softmax_torch.ops.cpu import FEW
from softmax_torch.ops.linear_rows import Linear
from softmax_torch.precision import loss_dtype, lowered, lowers, without_autocast
from softmax_torch.reductions import Options

__all__ = ["cross_entropy", "linear_cross_entropy"]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    sample_weight: Tensor | None = None,
    z_loss: float = 0.0,
) -> Tensor:
    """Cross-entropy of logits: ``torch.nn.functional.cross_entropy``, and a little more.

    Args:
        input: logits of shape (C,), (N, C) or (N, C, d1, ..., dK), floating point.
        target: class indices of any integer dtype, of shape (), (N,) or (N, d1, ..., dK); or class
            probabilities of the shape of ``input``, floating point and differentiable.
        weight: class weights (C,), not negative.
        ignore_index: rows with this class index count for nothing. Not for class probabilities.
        reduction: "none", "mean" or "sum".
        label_smoothing: eps in [0, 1], the share of the target that is spread over all classes.
        sample_weight: weight of each row, of the shape of the unreduced loss, not negative and
            differentiable. The mean divides by the weighted count.
        z_loss: zeta >= 0; adds zeta * logsumexp(row)^2 to each row that is not ignored (PaLM,
            Chowdhery et al. 2022, section 5).

    Returns:
        The loss in the dtype of ``input`` (float32 under autocast): a scalar, or for "none" of the
        shape of ``target`` (for class probabilities: of ``input`` without its class dimension).
        Sums are taken in float32 for half-precision input.

    Raises:
        ValueError, IndexError, TypeError, RuntimeError: as torch does for the same mistake, before
            anything is computed. A class index out of range is an IndexError that names it. Where
            the values cannot be looked at without a wait it is NaN in the loss of its row on a GPU
            with Triton, and so in a mean or sum; with class weights, under torch.compile and
            without Triton it is a device-side assertion, as in torch.

    All derivatives of all orders are right, in forward and reverse mode and under torch.func.
    """
    if (
        weight is None
        and sample_weight is None
        and reduction == "mean"
        and label_smoothing == 0.0
        and z_loss == 0.0
        and _plain_rows(input, target, ignore_index)
    ):
        # What most training steps are. The path below comes to the same, 20 us later, and it says
        # what is wrong with an index.
        try:
            return rows.mean_nll(input, target)
        except (IndexError, RuntimeError):
            pass
    checks.options(reduction, label_smoothing, z_loss)
    soft = checks.cross_entropy_shapes(input, target, weight, ignore_index, sample_weight)
    options = Options(ignore_index, reduction, label_smoothing, z_loss)
    if not backends.autocast(input):
        return _cross_entropy(input, target, soft, weight, sample_weight, options)
    with torch.autocast(input.device.type, enabled=False):
        return _cross_entropy(upcast(input), target, soft, weight, sample_weight, options)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    z_loss: float = 0.0,
) -> Tensor:
    """Cross-entropy of a linear layer, without holding its logits where they are many.

    Equal in value and in every derivative to ``cross_entropy`` of the logits
    ``F.linear(input, linear_weight, linear_bias)`` with classes last. Only the gradients that are
    asked for are computed, and no argument is written to.

    Args:
        input: features of shape (..., D).
        linear_weight: (C, D); or (C, d1, ..., dK, D) as in torch, where a sample of an input (N, D)
            has a logit for each class and position, and the logits are those of ``cross_entropy``.
        target: class indices (...), or class probabilities (..., C).
        linear_bias: (C,), or None; of the shape of linear_weight without D.
        weight, ignore_index, reduction, label_smoothing, sample_weight, z_loss: as in
            ``cross_entropy``; sample_weight has shape (...).

    Returns:
        The loss in the dtype of ``input`` (float32 under autocast): a scalar, or for "none" (...).

    Raises:
        As ``cross_entropy``, and for features that do not fit ``linear_weight``: RuntimeError.

    With C > D and a scalar loss in eager mode, logits exist in blocks of a few MiB and the
    gradients are formed in the forward pass: no memory beyond the gradients grows with N C.
    """
    checks.options(reduction, label_smoothing, z_loss)
    checks.linear_shapes(input, linear_weight, linear_bias)
    C, D = linear_weight.shape[0], input.shape[-1]
    if linear_weight.dim() > 2:
        bias = None if linear_bias is None else linear_bias.flatten()
        logits = F.linear(input, linear_weight.flatten(0, -2), bias)
        return cross_entropy(
            logits.view(*input.shape[:-1], *linear_weight.shape[:-1]),
            target,
            weight,
            ignore_index,
            reduction,
            label_smoothing,
            sample_weight=sample_weight,
            z_loss=z_loss,
        )
    if (
        backends.plain()
        and weight is None
        and sample_weight is None
        and input.dim() == 2
        and len(input) * C <= FEW
    ):
        # Few logits cost so little that not keeping them would cost more.
        logits = F.linear(input, linear_weight, linear_bias)
        return cross_entropy(
            logits, target, None, ignore_index, reduction, label_smoothing, z_loss=z_loss
        )
    options = Options(ignore_index, reduction, label_smoothing, z_loss)
    soft = checks.linear_target_shapes(input, C, target, weight, ignore_index, sample_weight)
    x = input.reshape(math.prod(input.shape[:-1]), D)
    target = target.reshape(-1, C) if soft else target.reshape(-1)
    if sample_weight is not None:
        sample_weight = sample_weight.reshape(-1)
    dtype = loss_dtype(x, target, soft, weight)
    linear = Linear(x, linear_weight, linear_bias)
    autocast = lowers(x)
    if autocast:
        dtype = torch.promote_types(dtype, torch.float32)
        linear = lowered(linear)
    with without_autocast(x):
        # Numbers per row of few classes are cheapest from the logits, which are smaller than x.
        kept = (reduction == "none" and C <= D) or x.numel() == 0
        if kept or not reductions.fused(target, weight, sample_weight):
            logits = linear.logits()
            logits = upcast(logits) if autocast else logits
            loss = _cross_entropy(logits, target, soft, weight, sample_weight, options)
        else:
            if soft:
                goal = reductions.class_probabilities(target, weight, options)
            else:
                goal = reductions.class_indices(
                    target, C, weight, options, upcast(linear.x[:0]).dtype
                )
            loss = reductions.loss(linear, len(x), goal, sample_weight, options)
            loss = loss.to(dtype)
    return loss.reshape(input.shape[:-1]) if reduction == "none" else loss


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    soft: bool,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    options: Options,
) -> Tensor:
    """``cross_entropy`` of arguments that fit, without autocast."""
    dtype = loss_dtype(input, target, soft, weight)
    input = input.to(dtype)
    z = _class_second(input, input)
    row_shape = z.shape[:1] + z.shape[2:]
    if soft:
        goal = reductions.class_probabilities(_class_second(target, input), weight, options)
    else:
        y = target.reshape(row_shape)
        goal = reductions.class_indices(y, z.shape[1], weight, options, upcast(z[:0]).dtype)
    if sample_weight is not None:
        sample_weight = sample_weight.reshape(row_shape)
    loss = reductions.loss(z, math.prod(row_shape), goal, sample_weight, options)
    if options.reduction == "none":
        loss = loss.reshape(checks.loss_shape(input, target, soft))
    return loss.to(dtype)


def _plain_rows(input: Tensor, target: Tensor, ignore_index: int) -> bool:
    """Whether these are float32 logits (N, C) on a CPU and N indices of them, in plain code."""
    if not (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.dtype == torch.float32
        and target.dtype == torch.int64
        and input.is_cpu
        and target.is_cpu
        and input.requires_grad
        and torch.is_grad_enabled()
        and backends.plain()
    ):
        return False
    shape = input.shape
    if len(shape) != 2 or target.shape != shape[:1] or 0 in shape or input.stride(1) != 1:
        return False
    return not (0 <= ignore_index < shape[1] or torch.is_autocast_enabled("cpu"))


def _class_second(x: Tensor, z: Tensor) -> Tensor:
    """x, of the shape of logits z, as (N, C) or (N, C, M), without a copy where z allows it."""
    if z.dim() == 1:
        return x.unsqueeze(0)
    if z.dim() == 2:
        # Classes far apart and rows side by side: the layout of (1, C, M), transposed.
        if z.stride(0) == 1 and z.stride(1) > 1 and z.shape[1] > 1:
            return x.t().unsqueeze(0)
        return x
    if z.stride(1) == 1 and z.shape[1] > 1:  # channels last: rows of classes
        return x.movedim(1, -1).flatten(0, -2)
    return x.flatten(2)
