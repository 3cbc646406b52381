"""Calls of cross-entropy that skip parsing, recognised by their arguments alone.

    mean NLL      of float32 logits, or of a layer, on a CPU: value and gradient by one native call
    index loss    of class indices on a GPU: a mean or a sum, with class weights, label smoothing
                  and a z-loss, by one to three kernels

On small batches calls and launches cost more than arithmetic. A call that fits no shortcut takes
the general route, with the same result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softmax_torch.loss.checks import Options
from softmax_torch.maths import sum_dtype
from softmax_torch.ops import backends, budgets, modes
from softmax_torch.ops.index_loss import IndexLoss
from softmax_torch.ops.interfaces import GPUKernels, LayerKernels
from softmax_torch.ops.linear_rows import Linear

__all__ = ["PLAIN_TYPES", "index_loss", "is_mean_nll", "layer_index_loss", "mean_nll_kernels"]

PLAIN_TYPES = (Tensor, torch.nn.Parameter)
"""The types of tensors whose memory a kernel may read. Subclasses may have none of their own."""


def is_mean_nll(
    input: Tensor, target: Tensor, options: Options, classes: int | None = None
) -> bool:
    """Return whether a call takes the shortcut of the common case, before anything is parsed.

    It is the mean NLL of a float32 matrix on a CPU, all of whose rows count, in plain eager code.
    The general route has the same result, 20 us later, and names a wrong class index. ``classes``
    are those of a layer whose input is given.
    """
    if not (
        type(input) in PLAIN_TYPES
        and input.is_cpu
        and type(target) in PLAIN_TYPES
        and options.is_mean_nll()
        and input.dtype is torch.float32
        and target.dtype is torch.int64
        and target.is_cpu
    ):
        return False
    shape = input.shape
    if len(shape) != 2:
        return False
    N, C = shape[0], shape[1] if classes is None else classes
    return (
        N > 0
        and C > 0
        and target.shape == (N,)
        and (input.stride(1) == 1 or shape[1] == 1)
        and not 0 <= options.ignore_index < C
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and modes.plain()
        and not input.is_neg()
    )


def mean_nll_kernels(linear: Linear, target: Tensor, options: Options) -> LayerKernels | None:
    """Return the kernels if a layer takes the shortcut of the common case, else None."""
    x, W, b = linear
    if not (
        type(W) in PLAIN_TYPES
        and W.dtype is torch.float32
        and W.is_contiguous()
        and W.dim() == 2
        and is_mean_nll(x, target, options, W.shape[0])
        and not W.is_neg()  # not traced: ``is_mean_nll`` comes first
        and W.shape[1] == x.shape[1] > 0
        and target.is_contiguous()
    ):
        return None
    if b is None:
        needed = x.requires_grad or W.requires_grad
    elif not (
        type(b) in PLAIN_TYPES
        and b.dtype is torch.float32
        and b.is_cpu
        and b.shape == W.shape[:1]
        and b.is_contiguous()
        and not b.is_neg()
    ):
        return None
    else:
        needed = x.requires_grad or W.requires_grad or b.requires_grad
    return backends.layer_kernels(x, W) if needed else None


def index_loss(
    input: Tensor, target: Tensor, options: Options, classes: int | None = None
) -> tuple[GPUKernels, IndexLoss] | None:
    """Return the kernels and the loss if a call takes the shortcut of a GPU, else None.

    ``classes`` are those of a layer whose input is given.
    """
    if type(input) not in PLAIN_TYPES or type(target) not in PLAIN_TYPES or not modes.plain():
        return None
    kernels = backends.index_kernels(input)
    if kernels is None:
        return None
    shape, dtype = input.shape, input.dtype
    if not (
        len(shape) == 2
        and dtype in (torch.float32, torch.bfloat16)
        and target.dtype is torch.int64
        and target.shape == (shape[0],)
        and shape[0] > 0
        and target.is_contiguous()
        and target.device == input.device
        and (input.stride(1) == 1 or shape[1] == 1)
        and not input.is_neg()
    ):
        return None
    weight, sample_weight, ignore, reduction, smoothing, z_loss, softcap, _, normalizer = options
    C = shape[1] if classes is None else classes
    # The kernels know these options; the general route checks them.
    if not (
        C > 0
        and reduction in ("mean", "sum")
        and sample_weight is None
        and softcap is None
        and normalizer is None
        and not options.scales()
        and type(ignore) is int
        and isinstance(smoothing, (int, float))
        and 0.0 <= smoothing <= 1.0
        and isinstance(z_loss, (int, float))
        and 0.0 <= z_loss < math.inf
        and (weight is None or _is_class_weight(weight, C, input.device))
    ):
        return None
    if modes.plain_autocast(input):
        dtype = sum_dtype(dtype)
    # Numbers are floats, for which Triton compiles one kernel.
    mean = reduction == "mean"
    return kernels, IndexLoss(weight, ignore, float(smoothing), float(z_loss), mean, dtype)


def _is_class_weight(weight: Tensor, C: int, device: torch.device) -> bool:
    """Return whether the kernels of an ``IndexLoss`` can read these class weights."""
    return (
        type(weight) in PLAIN_TYPES
        and weight.dtype is torch.float32
        and weight.shape == (C,)
        and weight.is_contiguous()
        and weight.device == device
        and not (weight.requires_grad and torch.is_grad_enabled())
    )


def layer_index_loss(
    linear: Linear, target: Tensor, options: Options
) -> tuple[Linear, GPUKernels, IndexLoss] | None:
    """Return what ``index_loss`` does for a layer with few enough logits to hold, else None.

    Under autocast the layer has its lower dtype.
    """
    x, W, b = linear
    if not (
        type(x) in PLAIN_TYPES
        and type(W) in PLAIN_TYPES
        and (b is None or (type(b) in PLAIN_TYPES and b.dtype is W.dtype))
        and x.dim() == W.dim() == 2
        and x.dtype is W.dtype
        and x.shape[1] == W.shape[1] > 0
        and x.device == W.device
        and (b is None or (b.shape == W.shape[:1] and b.device == x.device))
    ):
        return None
    found = index_loss(x, target, options, W.shape[0])
    if found is None:
        return None
    if modes.autocast(x):
        low = torch.get_autocast_dtype(x.device.type)
        if low not in (torch.float32, torch.bfloat16):
            return None
        linear = Linear(x.to(low), W.to(low), None if b is None else b.to(low))
    if x.shape[0] * W.shape[0] * linear.x.element_size() > budgets.logits_budget(x):
        return None
    return linear, *found
