"""The objective of plain softmax regression and its gradient, without autograd.

    F  = mean nll + l2 ||W||^2                      z = x W^T + b
    dW = dz^T x + 2 l2 W,    db = sum_i dz_i        dz = (p - e_y) / n

These are two matrix products with a kernel between them. At 128 x 784 x 10 autograd's bookkeeping
takes 300 of the 800 us of a step on 2 busy cores. The formula serves plain models without hooks:
see ``applies``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softmax_torch.modules import SoftmaxRegression
from softmax_torch.ops import backends, cpu

__all__ = ["applies", "set_gradient"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def applies(model: nn.Module) -> bool:
    """Return whether a model is a plain one in float32 on a CPU, without hooks or autocast."""
    if type(model) is not SoftmaxRegression or type(model.linear) is not nn.Linear:
        return False
    parameters = [p for p in (model.linear.weight, model.linear.bias) if p is not None]
    return (
        all(p.dtype == torch.float32 and p.is_cpu and p.requires_grad for p in parameters)
        and not any(getattr(module, hooks) for module in model.modules() for hooks in HOOKS)
        and not torch.is_autocast_enabled("cpu")
        and backends.plain()
    )


@torch.no_grad()
def set_gradient(
    model: SoftmaxRegression, x: Tensor, y: Tensor, l2: float
) -> tuple[Tensor, Tensor]:
    """Set the ``grad`` of the parameters to the gradient; return objective and logits (n, C).

    Args:
        model: a model that satisfies ``applies``.
        x: inputs (n, ...) in float32, n > 0.
        y: class indices (n,).
        l2: factor of the squared norm of the weight.

    Raises:
        IndexError, RuntimeError: a class index is out of range. ``grad`` is unchanged then.
    """
    linear = model.linear
    x = x.flatten(1)
    z = nn.functional.linear(x, linear.weight, linear.bias)
    objective, dz = cpu.mean_nll(z, y)
    if linear.weight.grad is None:
        linear.weight.grad = torch.empty_like(linear.weight)
    torch.mm(dz.T, x, out=linear.weight.grad)
    if l2:
        objective = objective + l2 * linear.weight.square().sum()
        linear.weight.grad.add_(linear.weight, alpha=2 * l2)
    if linear.bias is not None:
        if linear.bias.grad is None:
            linear.bias.grad = torch.empty_like(linear.bias)
        torch.sum(dz, 0, out=linear.bias.grad)
    return objective, z
