"""Parse the arguments of cross-entropy into a ``Problem``, once, before anything is computed.

``checks`` raises for arguments that do not fit. Class indices are read here, where reading them
needs no wait for a device (see ``backends.values_readable``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.loss.checks import Options, check_input, check_options, check_target
from softmax_torch.maths import LogitTransform, sum_dtype
from softmax_torch.ops import backends, modes
from softmax_torch.ops.linear_rows import Linear

__all__ = ["Problem", "linear_problem", "logits_problem"]


class Problem(NamedTuple):
    """A call of cross-entropy: its arguments, checked and in the shapes of ``maths``."""

    source: Tensor | Linear  # logits (N, C) or (N, C, M), or the layer with an input (N, D)
    target: Tensor  # int64 class indices (N,) or (N, M), all valid, or probabilities like logits
    soft: bool  # whether target holds class probabilities
    counted: Tensor | None  # False in rows that are ignored; None if there are none
    transform: LogitTransform | None  # of the logits, before everything else
    classes: int  # C; counts all shards if source has one shard of the classes
    options: Options  # with sample_weight (N,) or (N, M)
    dtype: torch.dtype  # of the loss
    shape: torch.Size  # of the loss with reduction="none"
    autocast: bool  # whether autocast is on; the loss must be computed with it off


def logits_problem(
    input: Tensor,
    target: Tensor,
    options: Options,
    classes: int | None = None,
    whole_target: Tensor | None = None,
) -> Problem:
    """Parse a call of ``cross_entropy``.

    For logits of a shard of the classes, ``classes`` and ``whole_target`` are as in
    ``linear_problem``.
    """
    check_options(options)
    check_input(input)
    shape = input.shape
    rows = torch.Size() if len(shape) == 1 else shape[:1] + shape[2:]
    if classes is None:
        classes = shape[0] if len(shape) == 1 else shape[1]
    else:
        shape = torch.Size((*rows[:1], classes, *rows[1:]))
    checked = target if whole_target is None else whole_target
    soft = check_target(input, shape, classes, rows, checked, options)
    autocast = modes.autocast(input)
    dtype = sum_dtype(input.dtype) if autocast else input.dtype
    dtype = _loss_dtype(dtype, target, soft, options.weight)
    z = _class_second(input.to(dtype), input)
    row_shape = z.shape[:1] + z.shape[2:]
    counted = None
    if soft:
        target = _class_second(target, input)
    else:
        target, counted = _class_indices(target.reshape(row_shape), classes, options.ignore_index)
    target, counted, options = _with_sample_weight(target, counted, options, row_shape, soft)
    transform = options.transform()
    return Problem(z, target, soft, counted, transform, classes, options, dtype, rows, autocast)


def linear_problem(
    linear: Linear,
    target: Tensor,
    options: Options,
    classes: int | None = None,
    whole_target: Tensor | None = None,
) -> Problem:
    """Parse a call of ``linear_cross_entropy`` whose layer ``check_linear`` has passed.

    For a shard of the classes, ``classes`` counts those of all shards, and ``whole_target`` is
    checked in place of ``target``, which has the probabilities of the shard only.
    """
    x, rows = linear.x, linear.x.shape[:-1]
    N = math.prod(rows)
    C = linear.weight.shape[0] if classes is None else classes
    checked = target if whole_target is None else whole_target
    soft = check_target(x, torch.Size((*rows, C)), C, rows, checked, options)
    dtype = _loss_dtype(x.dtype, target, soft, options.weight)
    linear = Linear(x.reshape(N, x.shape[-1]), linear.weight, linear.bias)
    autocast = modes.autocast(x)
    if autocast and x.dtype != torch.float64:
        # Autocast multiplies matrices in its lower dtype, except float64, and gives float32 losses.
        dtype = torch.promote_types(dtype, torch.float32)
        low = torch.get_autocast_dtype(x.device.type)
        _, W, b = linear
        linear = Linear(linear.x.to(low), W.to(low), None if b is None else b.to(low))
    counted = None
    if soft:
        target = target.reshape(N, target.shape[-1])
    else:
        target, counted = _class_indices(target.reshape(-1), C, options.ignore_index)
    target, counted, options = _with_sample_weight(target, counted, options, (N,), soft)
    transform = options.transform()
    return Problem(linear, target, soft, counted, transform, C, options, dtype, rows, autocast)


def _with_sample_weight(
    target: Tensor,
    counted: Tensor | None,
    options: Options,
    shape: tuple[int, ...],
    soft: bool,
) -> tuple[Tensor, Tensor | None, Options]:
    """Return target, mask and options, with the sample weight in the shape of the rows.

    A boolean weight becomes part of the mask. The class probabilities of an ignored row, which may
    be anything, become 0.
    """
    weight = options.sample_weight
    if weight is None:
        return target, counted, options
    weight = weight.reshape(shape)
    if weight.dtype != torch.bool:
        return target, counted, options._replace(sample_weight=weight)
    counted = weight if counted is None else counted & weight
    if soft:
        target = torch.where(weight.unsqueeze(1), target, 0.0)
    return target, counted, options._replace(sample_weight=None)


def _loss_dtype(
    dtype: torch.dtype, target: Tensor, soft: bool, weight: Tensor | None
) -> torch.dtype:
    """Return the dtype of the loss: soft targets and their class weights promote the input's."""
    if soft:
        dtype = torch.promote_types(dtype, target.dtype)
        if weight is not None:
            dtype = torch.promote_types(dtype, weight.dtype)
    return dtype


def _class_second(x: Tensor, z: Tensor) -> Tensor:
    """Return x, of the shape of logits z, as (N, C) or (N, C, M), without a copy if z allows it."""
    if z.dim() == 1:
        return x.unsqueeze(0)
    if z.dim() == 2:
        # Distant classes and adjacent rows are the layout of (1, C, M), transposed.
        if z.stride(0) == 1 and z.stride(1) > 1 and z.shape[1] > 1:
            return x.t().unsqueeze(0)
        return x
    if z.stride(1) == 1 and z.shape[1] > 1:  # channels last: rows of classes
        return x.movedim(1, -1).flatten(0, -2)
    return x.flatten(2)


def _class_indices(y: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    """Return y in int64, with class 0 in ignored rows, and the mask of the rows that count.

    The mask is None if no row is ignored. Raise IndexError if a class index is out of range and
    values are readable.
    """
    y = y.to(torch.int64)
    if not _may_ignore(y, classes, ignore_index):
        return y, None
    counted = y != ignore_index
    return torch.where(counted, y, 0), counted


def _may_ignore(y: Tensor, classes: int, ignore_index: int) -> bool:
    """Return whether a row may be ignored, True if values are not readable; check the range."""
    if not backends.values_readable(y):
        return True
    if y.numel() == 0:
        return False
    least, most = y.aminmax()
    if least.item() >= 0 and most.item() < classes:
        return 0 <= ignore_index < classes and bool((y == ignore_index).any())
    wrong = y[((y < 0) | (y >= classes)) & (y != ignore_index)]
    if wrong.numel() > 0:
        raise IndexError(
            f"target: expected class indices in [0, {classes}) or ignore_index={ignore_index}, "
            f"got {int(wrong[0])}"
        )
    return True
