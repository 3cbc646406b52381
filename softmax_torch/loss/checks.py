"""The options of cross-entropy, and the checks of all arguments.

Every message names the argument, the expected and the given value. The exception types are those
that torch raises for the same mistake. Shapes, dtypes and devices are always checked; values only
where reading them needs no wait for a device (see ``backends.values_readable``).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.maths import LogitTransform
from softmax_torch.ops import backends, modes
from softmax_torch.ops.linear_rows import Linear

__all__ = [
    "Options",
    "check_input",
    "check_linear",
    "check_options",
    "check_sizes",
    "check_target",
    "distributed",
]


class Options(NamedTuple):
    """The options of cross-entropy: its arguments besides logits and target."""

    weight: Tensor | None = None
    sample_weight: Tensor | None = None
    ignore_index: int = -100
    reduction: str = "mean"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    logit_scale: float | Tensor = 1.0
    normalizer: float | Tensor | None = None

    def is_mean_nll(self) -> bool:
        """Return whether the loss is the mean NLL of the rows that are not ignored."""
        return (
            self.weight is None
            and self.sample_weight is None
            and type(self.ignore_index) is int
            and self.reduction == "mean"
            and self.label_smoothing == 0.0
            and self.z_loss == 0.0
            and self.softcap is None
            and self.normalizer is None
            and not self.scales()
        )

    def scales(self) -> bool:
        """Return whether the logits are scaled."""
        return isinstance(self.logit_scale, Tensor) or self.logit_scale != 1.0

    def transform(self) -> LogitTransform | None:
        """Return the transform of the logits, None where they stay as they are."""
        if self.softcap is None and not self.scales():
            return None
        return LogitTransform(self.softcap, self.logit_scale)


def check_sizes(in_features: int, num_classes: int) -> None:
    """Raise ValueError unless a model has features and classes."""
    for name, size in (("in_features", in_features), ("num_classes", num_classes)):
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")


def check_options(options: Options) -> None:
    """Raise ValueError, TypeError or RuntimeError unless the options are in their ranges."""
    label_smoothing, z_loss = options.label_smoothing, options.z_loss
    if options.reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction: expected "none", "mean" or "sum", got {options.reduction!r}')
    ignore_index: object = options.ignore_index
    if not (isinstance(ignore_index, int) or hasattr(ignore_index, "__index__")):
        raise TypeError(f"ignore_index: expected an integer, got {ignore_index!r}")
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
    softcap, normalizer = options.softcap, options.normalizer
    if softcap is not None and not 0.0 < _number("softcap", softcap) < math.inf:
        raise ValueError(f"softcap: expected a finite number > 0 or None, got {softcap}")
    scale = _number_or_scalar("logit_scale", options.logit_scale)
    if scale is not None and not -math.inf < scale < math.inf:
        raise ValueError(f"logit_scale: expected a finite number, got {scale}")
    if normalizer is not None:
        if options.reduction != "mean":
            raise ValueError(
                'normalizer: expected reduction="mean", whose divisor it is, got reduction='
                f"{options.reduction!r}"
            )
        divisor = _number_or_scalar("normalizer", normalizer)
        if divisor is not None and not 0.0 < divisor < math.inf:
            raise ValueError(f"normalizer: expected a finite number > 0, got {divisor}")


def _number(name: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    raise TypeError(f"{name}: expected a number, got {value!r}")


def _number_or_scalar(name: str, value: object) -> float | None:
    """Return the value of a number or of a tensor of shape (); None if it is not readable.

    The value of a DTensor is checked when its local part is.
    """
    if not isinstance(value, Tensor):
        return _number(name, value)
    if value.dim() > 0 or value.dtype.is_complex or value.dtype == torch.bool:
        raise ValueError(
            f"{name}: expected a number or a tensor of shape (), got {value.dtype} of shape "
            f"{tuple(value.shape)}"
        )
    if distributed(value) or not backends.values_readable(value):
        return None
    return float(value.detach())


def check_input(input: Tensor) -> None:
    """Raise the error of ``_check_tensor`` or ``_check_floating``, or RuntimeError for a scalar."""
    _check_tensor("input", input)
    if input.dim() == 0:
        raise RuntimeError("input: expected logits of shape (C,) or (N, C, ...), got a scalar")
    _check_floating(input)


def check_linear(linear: Linear) -> None:
    """Raise the error of ``_check_tensor`` or ``_check_floating``, or RuntimeError for misfits."""
    input, weight, bias = linear
    _check_tensor("input", input)
    _check_tensor("linear_weight", weight)
    if bias is not None:
        _check_tensor("linear_bias", bias)
    if weight.dim() < 2 or input.dim() < 1:
        raise RuntimeError(
            f"input and linear_weight: expected shapes (..., D) and (C, D), got "
            f"{tuple(input.shape)} and {tuple(weight.shape)}"
        )
    _check_floating(input)
    if weight.dim() > 2 and input.dim() != 2:
        raise RuntimeError(
            f"input: expected shape (N, D) with linear_weight of shape {tuple(weight.shape)}"
            f", a logit for each class and position; got {tuple(input.shape)}"
        )
    if input.shape[-1] != weight.shape[-1]:
        raise RuntimeError(
            f"input: expected {weight.shape[-1]} features as linear_weight of shape "
            f"{tuple(weight.shape)} has, got shape {tuple(input.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise RuntimeError(
            f"linear_bias: expected shape {tuple(weight.shape[:-1])}, got {tuple(bias.shape)}"
        )
    for name, tensor in (("linear_weight", weight), ("linear_bias", bias)):
        _check_device(name, tensor, input)
        if tensor is not None and tensor.dtype != input.dtype and not modes.autocast(input):
            raise RuntimeError(f"{name}: expected {input.dtype} as input, got {tensor.dtype}")


def check_target(
    input: Tensor,
    shape: torch.Size,
    classes: int,
    rows: torch.Size,
    target: Tensor,
    options: Options,
) -> bool:
    """Return whether ``target`` holds class probabilities; raise unless it and the weights fit."""
    weight, sample_weight = options.weight, options.sample_weight
    _check_tensor("target", target)
    if classes == 0:
        raise IndexError(f"expected logits of at least one class, got shape {tuple(shape)}")
    soft = target.shape == shape
    if soft:
        _check_probabilities(target, options.ignore_index)
    else:
        _check_indices(shape, rows, target)
    if weight is not None:
        dtype = None if soft or modes.autocast(input) else input.dtype
        _check_class_weight(weight, classes, dtype)
    if sample_weight is not None:
        _check_sample_weight(sample_weight, rows if soft else target.shape)
    for name, tensor in (("target", target), ("weight", weight), ("sample_weight", sample_weight)):
        _check_device(name, tensor, input)
    return soft


def _check_tensor(name: str, value: object) -> None:
    """Raise TypeError unless the value is a tensor, and RuntimeError if it is a DTensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")
    # of a DTensor, whose import takes 0.7 s
    placements = None if type(value) is Tensor else getattr(value, "placements", None)
    if placements is not None:
        raise RuntimeError(
            f"{name}: expected a plain tensor, got a {type(value).__name__} with placements "
            f"{tuple(placements)}. With FSDP2 call the module, which gathers its "
            "weights, not its method loss; cross_entropy and linear_cross_entropy take DTensors"
        )


def distributed(*values: object) -> bool:
    """Return whether one of the values is a DTensor."""
    # Importing DTensor takes 0.7 s. A generator would cost 1 us a call.
    for value in modes.unwrapped(values):
        if isinstance(value, Tensor) and type(value) is not Tensor and hasattr(value, "placements"):
            return True
    return False


def _check_floating(input: Tensor) -> None:
    """Raise NotImplementedError unless the dtype is a floating-point type.

    Nothing is unfinished: torch's cross_entropy raises this type for integers, and code that
    catches one catches the other.
    """
    if not input.dtype.is_floating_point:
        raise NotImplementedError(f"input: expected a floating-point tensor, got {input.dtype}")


def _check_device(name: str, tensor: Tensor | None, input: Tensor) -> None:
    if tensor is not None and tensor.device != input.device:
        raise RuntimeError(f"{name}: expected it on {input.device} as input, got {tensor.device}")


def _check_probabilities(target: Tensor, ignore_index: int) -> None:
    if not target.dtype.is_floating_point:
        raise RuntimeError(
            f"target: expected class probabilities in a floating-point type, as it has the "
            f"shape of input, {tuple(target.shape)}; got {target.dtype}"
        )
    if ignore_index >= 0:
        raise RuntimeError(
            f"ignore_index: not supported for class probabilities, got {ignore_index}"
        )


def _check_indices(shape: torch.Size, expected: torch.Size, target: Tensor) -> None:
    got = target.shape
    if got != expected and not (len(shape) == 1 and got == (1,)):
        message = (
            f"target: expected class indices of shape {tuple(expected)} or class probabilities of "
            f"shape {tuple(shape)}, got {tuple(got)}"
        )
        # torch raises ValueError for a wrong batch size and RuntimeError for other wrong shapes.
        batch_differs = got[:1] != shape[:1] if len(shape) > 1 else len(got) == 1
        raise ValueError(message) if batch_differs else RuntimeError(message)
    if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
        raise RuntimeError(
            f"target: expected an integer type for class indices, got {target.dtype}"
        )


def _check_class_weight(weight: Tensor, classes: int, dtype: torch.dtype | None) -> None:
    _check_tensor("weight", weight)
    if weight.shape != (classes,):
        raise RuntimeError(
            f"weight: expected one number for each of the {classes} classes, got shape "
            f"{tuple(weight.shape)}"
        )
    if dtype is not None and weight.dtype != dtype:
        raise RuntimeError(f"weight: expected {dtype} as input, got {weight.dtype}")
    if backends.values_readable(weight) and math.isnan(weight.detach().amin().item()):
        raise ValueError("weight: expected numbers, got nan")


def _check_sample_weight(sample_weight: Tensor, shape: torch.Size) -> None:
    _check_tensor("sample_weight", sample_weight)
    if sample_weight.shape != shape:
        raise RuntimeError(
            f"sample_weight: expected the shape of the unreduced loss, {tuple(shape)}, got "
            f"{tuple(sample_weight.shape)}"
        )
    if sample_weight.dtype.is_complex:
        raise RuntimeError(f"sample_weight: expected real numbers, got {sample_weight.dtype}")
    if sample_weight.dtype == torch.bool:
        return
    if backends.values_readable(sample_weight) and sample_weight.numel() > 0:
        least = sample_weight.detach().amin().item()
        if not least >= 0:
            raise ValueError(f"sample_weight: expected numbers >= 0, got {least}")
