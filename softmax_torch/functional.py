"""The public functions: cross-entropy of logits, and of a linear layer, with torch's semantics.

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

from torch import Tensor

from softmax_torch.loss import route
from softmax_torch.loss.arguments import Options
from softmax_torch.ops.linear_rows import Linear

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
    """Return ``torch.nn.functional.cross_entropy`` of logits, with two more options.

    Args:
        input: logits of shape (C,), (N, C) or (N, C, d1, ..., dK), floating point.
        target: class indices of any integer dtype, of shape (), (N,) or (N, d1, ..., dK); or class
            probabilities of the shape of ``input``, floating point and differentiable.
        weight: class weights (C,). A mean over class weights that add up to 0 is not finite.
        ignore_index: rows with this class index are left out. Not for class probabilities.
        reduction: "none", "mean" or "sum".
        label_smoothing: eps in [0, 1], the share of the target that is spread over all classes.
        sample_weight: weight of each row, in the shape of the unreduced loss, not negative,
            differentiable. The mean divides by the weighted count.
        z_loss: zeta >= 0; adds zeta * logsumexp(row)^2 to each row that is not ignored (PaLM,
            Chowdhery et al. 2022, section 5).

    Returns:
        The loss in the dtype of ``input`` (float32 under autocast): a scalar, or for "none" one
        number per row, in the shape of ``input`` without its class dimension. Sums are taken in
        float32 for half-precision input. For a DTensor of logits split by rows, positions or
        classes it is a DTensor: replicated, or split as the rows for "none". Then plain tensors are
        whole, the same on all ranks, and DTensors have placements that fit the logits.

    Raises:
        ValueError, IndexError, TypeError, RuntimeError: the type that torch raises for the same
            mistake, before anything is computed.
        IndexError: a class index is out of range; the message names it. Where reading the values
            would have to wait for a GPU, there is no error: with Triton the loss of the row is NaN,
            and so is a mean or sum; with class weights, under torch.compile and without Triton a
            device-side assertion fails, as in torch.

    Derivatives of every order are right, in forward and reverse mode and under torch.func; of
    DTensors in reverse mode.
    """
    options = Options(weight, sample_weight, ignore_index, reduction, label_smoothing, z_loss)
    return route.logits_loss(input, target, options)


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
    """Return the cross-entropy of a linear layer, without holding all its logits if they are many.

    Equal in value and in every derivative to ``cross_entropy`` of the logits
    ``F.linear(input, linear_weight, linear_bias)`` with classes last. Only the gradients that are
    needed are computed, and no argument is written to.

    Args:
        input: features of shape (..., D).
        linear_weight: (C, D); or (C, d1, ..., dK, D) as in torch: each sample of an input (N, D)
            then has a logit for each class and position, and the logits are (N, C, d1, ..., dK).
        target: class indices (...), or class probabilities (..., C).
        linear_bias: (C,), or None; in general the shape of linear_weight without D.
        weight, ignore_index, reduction, label_smoothing, sample_weight, z_loss: as in
            ``cross_entropy``; sample_weight has shape (...).

    Returns:
        The loss in the dtype of ``input`` (float32 under autocast): a scalar, or for "none" (...).
        ``linear_weight`` and ``linear_bias`` may be DTensors, replicated or split by class. The
        loss is a DTensor if ``input`` is one, split by rows or replicated.

    Raises:
        ValueError, IndexError, TypeError, RuntimeError: as ``cross_entropy``; RuntimeError for
            features that do not fit ``linear_weight``.

    With C > D and a scalar loss in eager mode, logits exist in blocks of a few MiB and the
    gradients are formed in the forward pass: no memory beyond the gradients grows with N C.
    """
    linear = Linear(input, linear_weight, linear_bias)
    options = Options(weight, sample_weight, ignore_index, reduction, label_smoothing, z_loss)
    return route.linear_loss(linear, target, options)
