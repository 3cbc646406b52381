"""The objective of plain softmax regression and its gradient, without autograd.

    F  = mean nll + l2 ||W||^2                      z = x W^T + b
    dW = dz^T x + 2 l2 W,    db = sum_i dz_i        dz = (p - e_y) / n

The first terms are one call of a kernel where there is one for the layer. At 128 x 784 x 10
autograd's bookkeeping takes 300 of the 800 us of a step on 2 busy cores. On a GPU they are two
products, a kernel and a sum: without autograd, whose thread the host would wait for, a step costs
less than half of a bare loop's host time, and needs no CUDA graph. The formula serves plain models
without hooks: see ``applies``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from softmax_torch.modules import SoftmaxRegression
from softmax_torch.ops import backends, cpu, modes
from softmax_torch.ops.index_loss import IndexLoss

__all__ = ["applies", "parameters", "set_gradient"]

MEAN_NLL = IndexLoss(None, -100, 0.0, 0.0, True, torch.float32)
"""The loss as an argument of the kernels of a GPU."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def applies(model: nn.Module) -> bool:
    """Return whether a model is a plain one in float32, without hooks or autocast.

    It is on a CPU, or on a GPU that has kernels for the loss.
    """
    if type(model) is not SoftmaxRegression or type(model.linear) is not nn.Linear:
        return False
    parameters = [p for p in (model.linear.weight, model.linear.bias) if p is not None]
    weight = parameters[0]
    return (
        all(p.dtype == torch.float32 and p.requires_grad for p in parameters)
        and all(p.device == weight.device for p in parameters)
        and (weight.is_cpu or backends.index_kernels(weight) is not None)
        and not any(getattr(module, hooks) for module in model.modules() for hooks in HOOKS)
        and not modes.autocast(weight)
        and modes.plain()
    )


def parameters(model: SoftmaxRegression) -> tuple[Parameter, Parameter | None]:
    """Return the weight (C, D) and the bias (C,), None without one, of a plain model."""
    weight, bias = model.linear.weight, model.linear.bias
    assert isinstance(weight, Parameter), "see applies"
    return weight, bias


def set_gradient(
    weight: Parameter, bias: Parameter | None, x: Tensor, y: Tensor, l2: float
) -> tuple[Tensor, Tensor]:
    """Set the ``grad`` of the parameters to the gradient; return objective and logits (n, C).

    Args:
        weight, bias: W (C, D) and b (C,) or None, of a model that satisfies ``applies``.
        x: inputs (n, ...) in float32, n > 0.
        y: class indices (n,).
        l2: factor of the squared norm of the weight.

    Raises:
        IndexError, RuntimeError: a class index is out of range. ``grad`` is unchanged then. On a
            GPU objective and gradient are NaN in its place.
    """
    # Detached tensors cost 2 us less a step than torch.no_grad.
    W, b, x = weight.detach(), None if bias is None else bias.detach(), x.flatten(1)
    dW = torch.empty_like(W) if weight.grad is None else weight.grad
    db = None
    if bias is not None:
        db = torch.empty_like(bias) if bias.grad is None else bias.grad
    kernels = backends.layer_kernels(x, W) if _is_plain(x, W, y, dW) else None
    if kernels is None:
        z = F.linear(x, W, b)
        objective, dz = _mean_nll(z, y)
        torch.mm(dz.T, x, out=dW)
        if db is not None:
            torch.sum(dz, 0, out=db)
    else:
        z = x.new_empty(x.shape[0], W.shape[0])
        objective = kernels.mean_nll(x, W, b, y, dW, db, z=z)
    if l2:
        w = W.view(-1)
        objective = objective.add(torch.dot(w, w), alpha=l2)
        dW.add_(W, alpha=2 * l2)
    if weight.grad is not dW:
        weight.grad = dW
    if bias is not None and bias.grad is not db:
        bias.grad = db
    return objective, z


def _mean_nll(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean NLL of logits (n, C) and its gradient."""
    gpu = backends.index_kernels(z)
    if gpu is None:
        return cpu.mean_nll(z, y)
    if y.dtype != torch.int64 or y.shape != z.shape[:1] or y.device != z.device:
        raise RuntimeError("class indices that the kernels cannot read")
    dz = torch.empty_like(z)
    return gpu.index_loss(z, y.contiguous(), MEAN_NLL, dz), dz


def _is_plain(x: Tensor, W: Tensor, y: Tensor, dW: Tensor) -> bool:
    """Return whether a kernel may read and write these; torch says what is wrong with others."""
    return (
        x.dtype is torch.float32
        and y.dtype is torch.int64
        and x.shape == (y.shape[0], W.shape[1])
        and x.is_cpu
        and y.is_cpu
        and x.is_contiguous()
        and y.is_contiguous()
        and W.is_contiguous()
        and dW.is_contiguous()
    )
