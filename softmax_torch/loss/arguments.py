"""What callers get wrong, said before anything is computed: argument, expected, got.

The exception types are those torch raises for the same mistake. Shapes, dtypes and devices are
looked at always; values where that needs no wait for a device (see ``backends.values_at_hand``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from softmax_torch.ops import backends

__all__ = [
    "class_indices",
    "cross_entropy_shapes",
    "linear_shapes",
    "linear_target_shapes",
    "loss_shape",
    "options",
    "sizes",
]


def sizes(in_features: int, num_classes: int) -> None:
    """The sizes of a model."""
    for name, size in (("in_features", in_features), ("num_classes", num_classes)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")


def options(reduction: str, label_smoothing: float, z_loss: float) -> None:
    """The arguments that are not tensors."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction: expected "none", "mean" or "sum", got {reduction!r}')
    # The comparisons are written so that a NaN fails them.
    try:
        if not 0.0 <= label_smoothing <= 1.0:
            raise RuntimeError(
                f"label_smoothing: expected a number in [0, 1], got {label_smoothing}"
            )
        if not 0.0 <= z_loss < torch.inf:
            raise RuntimeError(f"z_loss: expected a finite number >= 0, got {z_loss}")
    except TypeError:
        raise TypeError(
            f"label_smoothing and z_loss: expected numbers, got {label_smoothing!r} and {z_loss!r}"
        ) from None


def cross_entropy_shapes(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    sample_weight: Tensor | None,
) -> bool:
    """Whether ``target`` holds class probabilities, once shapes, dtypes and devices fit."""
    _tensor("input", input)
    shape = input.shape
    if len(shape) == 0:
        raise RuntimeError("input: expected logits of shape (C,) or (N, C, ...), got a scalar")
    _floating(input)
    classes = shape[0] if len(shape) == 1 else shape[1]
    rows = torch.Size() if len(shape) == 1 else torch.Size((shape[0], *shape[2:]))
    return _targets(input, shape, classes, rows, target, weight, ignore_index, sample_weight)


def linear_target_shapes(
    input: Tensor,
    classes: int,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    sample_weight: Tensor | None,
) -> bool:
    """``cross_entropy_shapes`` of logits with classes last."""
    rows = input.shape[:-1]
    shape = torch.Size((*rows, classes))
    return _targets(input, shape, classes, rows, target, weight, ignore_index, sample_weight)


def _targets(
    input: Tensor,
    shape: torch.Size,
    classes: int,
    rows: torch.Size,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    sample_weight: Tensor | None,
) -> bool:
    """Whether ``target`` holds class probabilities for logits of this shape; the rest must fit."""
    _tensor("target", target)
    if classes == 0:
        raise IndexError(f"expected logits of at least one class, got shape {tuple(shape)}")
    soft = target.shape == shape
    if soft:
        _probabilities(target, ignore_index)
    else:
        _index_shape(shape, rows, target)
    _class_weight(weight, classes, None if soft or backends.autocast(input) else input.dtype)
    _sample_weight(sample_weight, rows if soft else target.shape)
    for name, tensor in (("target", target), ("weight", weight), ("sample_weight", sample_weight)):
        _same_device(name, tensor, input)
    return soft


def loss_shape(input: Tensor, target: Tensor, soft: bool) -> torch.Size:
    """The shape of the unreduced loss."""
    if not soft:
        return target.shape if input.dim() > 1 else torch.Size()
    return input.shape[:1] + input.shape[2:] if input.dim() > 1 else torch.Size()


def linear_shapes(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> None:
    """The arguments of the linear layer."""
    _tensor("input", input)
    _tensor("linear_weight", linear_weight)
    if linear_bias is not None:
        _tensor("linear_bias", linear_bias)
    if linear_weight.dim() < 2 or input.dim() < 1:
        raise RuntimeError(
            f"input and linear_weight: expected shapes (..., D) and (C, D), got "
            f"{tuple(input.shape)} and {tuple(linear_weight.shape)}"
        )
    _floating(input)
    if linear_weight.dim() > 2 and input.dim() != 2:
        raise RuntimeError(
            f"input: expected shape (N, D) with linear_weight of shape {tuple(linear_weight.shape)}"
            f", a logit for each class and position; got {tuple(input.shape)}"
        )
    if input.shape[-1] != linear_weight.shape[-1]:
        raise RuntimeError(
            f"input: expected {linear_weight.shape[-1]} features as linear_weight of shape "
            f"{tuple(linear_weight.shape)} has, got shape {tuple(input.shape)}"
        )
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:-1]:
        raise RuntimeError(
            f"linear_bias: expected shape {tuple(linear_weight.shape[:-1])}, "
            f"got {tuple(linear_bias.shape)}"
        )
    for name, tensor in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        _same_device(name, tensor, input)
        if tensor is not None and tensor.dtype != input.dtype and not backends.autocast(input):
            raise RuntimeError(f"{name}: expected {input.dtype} as input, got {tensor.dtype}")


def class_indices(y: Tensor, classes: int, ignore_index: int) -> bool:
    """Whether any row is ignored; an IndexError where a class index is out of range.

    Where the values are not at hand nothing is checked, and the answer is that rows may be ignored.
    """
    if not backends.values_at_hand(y):
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


def _tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")


def _floating(input: Tensor) -> None:
    if not input.dtype.is_floating_point:
        # The type that torch's own cross_entropy raises for it, hence ours: code that catches one
        # catches the other.
        raise NotImplementedError(f"input: expected a floating-point tensor, got {input.dtype}")


def _same_device(name: str, tensor: Tensor | None, input: Tensor) -> None:
    if tensor is not None and tensor.device != input.device:
        raise RuntimeError(f"{name}: expected it on {input.device} as input, got {tensor.device}")


def _probabilities(target: Tensor, ignore_index: int) -> None:
    if not target.dtype.is_floating_point:
        raise RuntimeError(
            f"target: expected class probabilities in a floating-point type, as its shape "
            f"{tuple(target.shape)} is that of input, got {target.dtype}"
        )
    if ignore_index >= 0:
        raise RuntimeError(
            f"ignore_index: not supported for class probabilities, got {ignore_index}"
        )


def _index_shape(shape: torch.Size, expected: torch.Size, target: Tensor) -> None:
    got = target.shape
    if got != expected and not (len(shape) == 1 and got == (1,)):
        message = (
            f"target: expected class indices of shape {tuple(expected)} or class probabilities of "
            f"shape {tuple(shape)}, got {tuple(got)}"
        )
        # torch tells a wrong batch size from other shapes by the type of the exception.
        batch_differs = got[:1] != shape[:1] if len(shape) > 1 else len(got) == 1
        raise ValueError(message) if batch_differs else RuntimeError(message)
    if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
        raise RuntimeError(
            f"target: expected an integer type for class indices, got {target.dtype}"
        )


def _class_weight(weight: Tensor | None, classes: int, dtype: torch.dtype | None) -> None:
    if weight is None:
        return
    _tensor("weight", weight)
    if weight.shape != (classes,):
        raise RuntimeError(
            f"weight: expected one number for each of the {classes} classes, got shape "
            f"{tuple(weight.shape)}"
        )
    if dtype is not None and weight.dtype != dtype:
        raise RuntimeError(f"weight: expected {dtype} as input, got {weight.dtype}")
    _not_negative("weight", weight)


def _sample_weight(sample_weight: Tensor | None, shape: torch.Size) -> None:
    if sample_weight is None:
        return
    _tensor("sample_weight", sample_weight)
    if sample_weight.shape != shape:
        raise RuntimeError(
            f"sample_weight: expected the shape of the unreduced loss, {tuple(shape)}, got "
            f"{tuple(sample_weight.shape)}"
        )
    if not sample_weight.dtype.is_floating_point:
        raise RuntimeError(
            f"sample_weight: expected a floating-point type, got {sample_weight.dtype}"
        )
    _not_negative("sample_weight", sample_weight)


def _not_negative(name: str, weight: Tensor) -> None:
    if backends.values_at_hand(weight) and weight.numel() > 0:
        least = weight.detach().amin().item()
        if not least >= 0:
            raise ValueError(f"{name}: expected numbers >= 0, got {least}")
