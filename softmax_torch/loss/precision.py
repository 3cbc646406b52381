"""Floating-point types of a loss and of the layer before it, with autocast and without.

Autocast multiplies matrices in its lower type, float64 aside, and gives losses in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from softmax_torch.ops import backends
from softmax_torch.ops.linear_rows import Linear

__all__ = ["loss_dtype", "lowered", "lowers", "without_autocast"]


def loss_dtype(input: Tensor, target: Tensor, soft: bool, weight: Tensor | None) -> torch.dtype:
    """The type of the loss, without autocast: class probabilities and their weights have a say."""
    dtype = input.dtype
    if soft:
        dtype = torch.promote_types(dtype, target.dtype)
        if weight is not None:
            dtype = torch.promote_types(dtype, weight.dtype)
    return dtype


def lowers(x: Tensor) -> bool:
    """Whether a linear layer with the input x is one that autocast has a say in."""
    return backends.autocast(x) and x.dtype != torch.float64


def lowered(linear: Linear) -> Linear:
    """The layer in the type in which autocast multiplies matrices."""
    x, weight, bias = linear
    low = torch.get_autocast_dtype(x.device.type)
    return Linear(x.to(low), weight.to(low), None if bias is None else bias.to(low))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast switched off for the device of x, where it is on."""
    return torch.autocast(x.device.type, enabled=False) if backends.autocast(x) else nullcontext()
