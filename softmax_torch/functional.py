"""The public functions: cross-entropy of logits, and of a linear layer, with torch's semantics.

    loss_i = (1 - eps) w_{y_i} nll_i + (eps / C) smooth_i + zeta lse_i^2        class indices
    loss_i = smooth_i with u_i = w * ((1 - eps) t_i + eps / C)                  class probabilities

with label smoothing eps, class weights w, z-loss zeta and the row numbers nll, smooth and lse of
``softmax_torch.maths``. A sample weight s_i multiplies loss_i. The mean divides by the sum of
s_i w_{y_i} over the rows that count (class indices) or of s_i (class probabilities); the z-loss is
averaged by s_i alone. With ``softcap`` and ``logit_scale`` the logits are transformed first.

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

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from softmax_torch.loss import route
from softmax_torch.loss.checks import Options
from softmax_torch.loss.outputs import CrossEntropyOutputs, Request
from softmax_torch.ops.linear_rows import Linear

__all__ = [
    "cross_entropy",
    "cross_entropy_outputs",
    "linear_cross_entropy",
    "linear_cross_entropy_outputs",
]


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
    softcap: float | None = None,
    logit_scale: float | Tensor = 1.0,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Return ``torch.nn.functional.cross_entropy`` of logits, with more options.

    Args:
        input: logits of shape (C,), (N, C) or (N, C, d1, ..., dK), floating point.
        target: class indices of any integer dtype, of shape (), (N,) or (N, d1, ..., dK); or class
            probabilities of the shape of ``input``, floating point and differentiable.
        weight: class weights (C,). A mean over class weights that add up to 0 is not finite.
        ignore_index: rows with this class index are left out. Not for class probabilities.
        reduction: "none", "mean" or "sum".
        label_smoothing: eps in [0, 1], the share of the target that is spread over all classes.
        sample_weight: weight of each row, in the shape of the unreduced loss, not negative, of any
            real dtype, differentiable. The mean divides by the weighted count. A boolean weight is
            a mask: rows with False are ignored, whatever their logits and target hold.
        z_loss: zeta >= 0; adds zeta * logsumexp(row)^2 to each row that is not ignored (PaLM,
            Chowdhery et al. 2022, section 5).
        softcap: the loss is that of softcap * tanh(input / softcap), logits between -softcap and
            softcap (Gemma 2, 2024, section 2); None for the logits as they are. A logit of -inf
            becomes -softcap.
        logit_scale: multiplies the logits, after the cap: an inverse temperature. A number, or a
            differentiable tensor of shape ().
        normalizer: divides the sum in place of the mean's count, in loss and z-loss: the number of
            rows of all batches and processes that a step accumulates. A number or a tensor of shape
            (), only with reduction="mean".

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
            and so is a mean or sum; with one loss per row and class weights, under torch.compile
            and without Triton a device-side assertion fails, as in torch. With the environment
            variable SOFTMAX_TORCH_CHECKS=1 the values are read, and the error names the index.

    Derivatives of every order are right, in forward and reverse mode and under torch.func; of
    DTensors in reverse mode.
    """
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
    softcap: float | None = None,
    logit_scale: float | Tensor = 1.0,
    normalizer: float | Tensor | None = None,
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
        weight, ignore_index, reduction, label_smoothing: as in ``cross_entropy``.
        sample_weight, z_loss, softcap, logit_scale, normalizer: as in ``cross_entropy``;
            sample_weight has shape (...).

    Returns:
        The loss in the dtype of ``input`` (float32 under autocast): a scalar, or for "none" (...).
        ``linear_weight`` and ``linear_bias`` may be DTensors, replicated or split by class. The
        loss is a DTensor if ``input`` is one, split by rows or replicated.

    Raises:
        ValueError, IndexError, TypeError, RuntimeError: as ``cross_entropy``; RuntimeError for
            features that do not fit ``linear_weight``.

    With C > D and a scalar loss in eager mode, logits exist in blocks of a few MiB and the
    gradients are formed in the forward pass: no memory beyond the gradients grows with N C. float16
    gradients are formed in the backward pass, when the scale of the loss is known. Logits are kept
    as a whole where both ``softcap`` is given and ``logit_scale`` needs a gradient.
    """
    linear = Linear(input, linear_weight, linear_bias)
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
    return route.linear_loss(linear, target, options)


def cross_entropy_outputs(
    input: Tensor,
    target: Tensor,
    *,
    outputs: Sequence[str],
    top_k: int = 5,
    detach: bool = False,
    **options: Any,
) -> CrossEntropyOutputs:
    """Return ``cross_entropy`` and further numbers of each row, from one pass over the logits.

    Args:
        input, target: as in ``cross_entropy``.
        outputs: names of what is wanted, from "lse", "log_prob", "z_loss", "argmax", "in_top_k" and
            "entropy"; ``CrossEntropyOutputs`` says what they are. Nothing else is computed.
        top_k: the k of "in_top_k".
        detach: whether lse and log_prob have no graph. The loss always has one.
        **options: the options of ``cross_entropy``.

    Returns:
        A named tuple of the loss and the outputs, None for those that were not asked for. Loss, lse
        and log_prob are differentiable, as often as the loss is; the others are constants.

    Raises:
        ValueError, IndexError, TypeError, RuntimeError: as ``cross_entropy``; ValueError for an
            unknown output, and for "log_prob" and "in_top_k" with class probabilities.

    >>> import torch
    >>> z, y = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 2])
    >>> result = cross_entropy_outputs(z, y, outputs=("argmax", "in_top_k"), top_k=2)
    >>> (result.argmax == y).float().mean().item(), result.in_top_k.tolist()
    (0.5, [True, False])
    """
    request = Request.checked(outputs, top_k, detach)
    return route.logits_outputs(input, target, Options(**options), request)


def linear_cross_entropy_outputs(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    outputs: Sequence[str],
    top_k: int = 5,
    detach: bool = False,
    **options: Any,
) -> CrossEntropyOutputs:
    """Return ``linear_cross_entropy`` and further numbers of each row, without a second product.

    Args:
        input, linear_weight, target, linear_bias: as in ``linear_cross_entropy``.
        outputs, top_k, detach, **options: as in ``cross_entropy_outputs``.

    Returns:
        As ``cross_entropy_outputs``. With "lse" or "log_prob" the backward pass builds the logits
        again, block by block, unless ``detach`` is given; the other outputs cost no product.

    Raises:
        ValueError, IndexError, TypeError, RuntimeError: as ``linear_cross_entropy`` and
            ``cross_entropy_outputs``.
    """
    linear = Linear(input, linear_weight, linear_bias)
    request = Request.checked(outputs, top_k, detach)
    return route.linear_outputs(linear, target, Options(**options), request)
