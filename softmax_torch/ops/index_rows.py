"""Autograd rules of a whole loss of class indices on a GPU, whose kernels need no other launches.

They are for plain eager code (``modes.plain``). The gradient is formed in the forward pass and
kept as in ``ops.rows``; the formulas of ``maths`` compute one that is differentiated or batched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from softmax_torch import maths
from softmax_torch.maths import RowWeights, Target
from softmax_torch.ops import modes
from softmax_torch.ops.index_loss import IndexLoss
from softmax_torch.ops.interfaces import GPUKernels
from softmax_torch.ops.linear_rows import Gradients, GradientSums, Linear, gradients_of_total

__all__ = ["Terms", "layer_loss", "logits_loss"]

Terms = Callable[[int, Tensor, IndexLoss], tuple[Target, RowWeights]]
"""A function that turns a number of classes, class indices (N,) and a loss into a target and
weights of ``maths``."""


def logits_loss(z: Tensor, y: Tensor, loss: IndexLoss, kernels: GPUKernels, terms: Terms) -> Tensor:
    """Return the loss of logits z (N, C), differentiable in z; see ``ops.gpu.index_loss``."""
    if not (z.requires_grad and torch.is_grad_enabled()):
        return kernels.index_loss(z, y, loss)
    result: Tensor = _LogitsLoss.apply(z, y, loss, kernels, terms)
    return result


def layer_loss(
    linear: Linear, y: Tensor, loss: IndexLoss, kernels: GPUKernels, terms: Terms
) -> Tensor:
    """Return the loss of a layer's logits, all of them at once, differentiable in the layer."""
    needed = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in linear)
    if not any(needed):
        return kernels.index_loss(linear.logits(), y, loss)
    result: Tensor = _LayerLoss.apply(*linear, y, loss, kernels, terms)
    return result


def _without_tensor(loss: IndexLoss) -> IndexLoss:
    """Return the loss without its class weights, which a Function saves with its other tensors."""
    return loss if loss.weight is None else loss._replace(weight=None)


class _LogitsLoss(Function):
    """``logits_loss`` with a gradient."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, y: Tensor, loss: IndexLoss, kernels: GPUKernels, terms: Terms
    ) -> Tensor:
        ctx.save_for_backward(z, y, loss.weight)
        ctx.loss, ctx.kernels, ctx.terms = _without_tensor(loss), kernels, terms
        ctx.formed = dz = torch.empty_like(z)
        return kernels.index_loss(z, y, loss, dz)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dz, ctx.formed = ctx.formed, None
        fast = modes.last_backward(g)
        if dz is None or not fast:
            z, y, weight = ctx.saved_tensors
            loss = ctx.loss._replace(weight=weight)
            if not fast:
                target, weights = ctx.terms(z.shape[1], y, loss)
                return maths.total_vjp(z, target, weights, g), None, None, None, None
            dz = torch.empty_like(z)
            ctx.kernels.index_loss(z, y, loss, dz)
        return ctx.kernels.scale_(dz, g), None, None, None, None


class _LayerLoss(Function):
    """``layer_loss`` with a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor,
        loss: IndexLoss,
        kernels: GPUKernels,
        terms: Terms,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, y, loss.weight)
        ctx.loss, ctx.kernels, ctx.terms = _without_tensor(loss), kernels, terms
        linear = Linear(x, weight, bias)
        result, ctx.formed = _loss_and_gradients(linear, y, loss, kernels, ctx.needs_input_grad)
        return result

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        formed, ctx.formed = ctx.formed, None
        x, weight, bias, y, class_weight = ctx.saved_tensors
        linear, loss = Linear(x, weight, bias), ctx.loss._replace(weight=class_weight)

        def dz_of(z: Tensor) -> Tensor:
            target, weights = ctx.terms(z.shape[1], y, loss)
            return maths.total_vjp(z, target, weights, g)

        gradients = gradients_of_total(
            linear,
            g,
            formed,
            lambda: _loss_and_gradients(linear, y, loss, ctx.kernels, ctx.needs_input_grad)[1],
            dz_of,
        )
        return *gradients, *[None] * 4


def _loss_and_gradients(
    linear: Linear, y: Tensor, loss: IndexLoss, kernels: GPUKernels, needed: tuple[bool, ...]
) -> tuple[Tensor, Gradients]:
    """Return the loss and the gradients that are needed; the logits become their gradient."""
    z = linear.logits(out=linear.x.new_empty(len(y), len(linear.weight)))
    result = kernels.index_loss(z, y, loss, z)
    sums = GradientSums(linear, needed[:3])
    sums.add(slice(None), z)
    return result, sums.gradients()
