"""Checks and conversion of class indices and of the weights of samples and classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers.conversion import as_tensor
from softmax_torch.solvers.processes import Processes

__all__ = ["as_class_indices", "as_sample_weight"]

LARGEST_TOTAL, LEAST_TOTAL = 1e30, 1e-30
"""Bounds of the sum of the weights: sums of weights times features stay within float32, whose
numbers lie between 1.2e-38 and 3.4e38."""


def as_class_indices(
    y: Any, n: int, device: torch.device, processes: Processes
) -> tuple[Tensor, int]:
    """Return the class indices (n,), int64, and the number of classes K.

    Raises:
        TypeError: y has no integer type.
        ValueError: y has another length than X, or negative entries, or not all classes 0 to K - 1
            occur, or K is 1.
    """
    target = as_tensor("y", y)
    if target.dtype.is_floating_point:
        raise TypeError(f"y: expected class indices of an integer type, got {target.dtype}")
    if target.dim() != 1 or len(target) != n:
        raise ValueError(
            f"y: expected shape ({n},), a class index for each row of X, got {tuple(target.shape)}"
        )
    target = target.to(device, torch.int64)
    least = int(target.amin())
    if least < 0:
        raise ValueError(f"y: expected class indices of at least 0, got {least}")
    most = int(processes.largest(target.amax()))
    total = int(processes.summed(torch.tensor(n, device=device)))
    if most >= total:  # checked before bincount allocates most + 1 counts
        raise ValueError(
            f"y: expected class indices 0, 1, ... that all occur, got {most} among {total} samples"
        )
    counts = processes.summed(torch.bincount(target, minlength=most + 1))
    if len(counts) < 2:
        raise ValueError("y: expected samples of at least 2 classes, got class 0 alone")
    if not counts.all():
        raise ValueError(
            f"y: expected samples of every class in [0, {len(counts)}), got none of class "
            f"{int((counts == 0).nonzero()[0])}"
        )
    return target, len(counts)


def as_sample_weight(
    sample_weight: Any, class_weight: Any, y: Tensor, classes: int, processes: Processes
) -> Tensor | None:
    """Return each sample's weight times its class weight (n,), float64; None if none are given.

    Raises:
        ValueError: weights have another shape, are negative or not finite, add up to 0 for a class,
            or have a sum that float32 cannot hold.
    """
    weight = None
    if sample_weight is not None:
        weight = as_tensor("sample_weight", sample_weight).to(y.device, torch.float64)
        if weight.dim() == 0:
            weight = weight.expand(len(y))
        _check_weights("sample_weight", weight, (len(y),))
        _check_totals("sample_weight", weight, y, classes, processes)
    if class_weight is not None:
        per_class = _class_weight(class_weight, weight, y, classes, processes)
        weight = per_class[y] if weight is None else weight * per_class[y]
        _check_totals("sample_weight and class_weight", weight, y, classes, processes)
    return weight


def _class_weight(
    class_weight: Any, weight: Tensor | None, y: Tensor, classes: int, processes: Processes
) -> Tensor:
    """Return the weight of each class (K,), float64.

    "balanced" is S / (K S_k), with S_k the sum of the sample weights of class k.
    """
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(
                f'class_weight: expected "balanced", numbers or None, got {class_weight!r}'
            )
        sums = processes.summed(torch.bincount(y, weight, minlength=classes).double())
        return sums.sum() / (classes * sums)
    if isinstance(class_weight, dict):
        unknown = [key for key in class_weight if key not in range(classes)]
        if unknown:
            raise ValueError(
                f"class_weight: expected classes in [0, {classes}), got {unknown[0]!r}"
            )
        class_weight = [class_weight.get(k, 1.0) for k in range(classes)]
    per_class = as_tensor("class_weight", class_weight).to(y.device, torch.float64)
    _check_weights("class_weight", per_class, (classes,))
    return per_class


def _check_totals(name: str, weight: Tensor, y: Tensor, classes: int, processes: Processes) -> None:
    """Raise ValueError unless every class has a weight > 0 and float32 can hold their sum."""
    sums = processes.summed(torch.bincount(y, weight, minlength=classes))
    if not sums.all():
        raise ValueError(
            f"{name}: expected samples of weight > 0 in every class, got none in class "
            f"{int((sums == 0).nonzero()[0])}"
        )
    total = float(sums.sum())
    if not LEAST_TOTAL <= total <= LARGEST_TOTAL:
        raise ValueError(
            f"{name}: expected weights with a sum from {LEAST_TOTAL:g} to {LARGEST_TOTAL:g}, got "
            f"{total:g}; scale the weights, and C by the inverse factor"
        )


def _check_weights(name: str, weight: Tensor, shape: tuple[int]) -> None:
    """Raise ValueError unless weights have this shape and are finite and at least 0."""
    if tuple(weight.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(weight.shape)}")
    if not weight.isfinite().all() or weight.amin() < 0:
        wrong = weight[~(weight.isfinite() & (weight >= 0))][0]
        raise ValueError(f"{name}: expected finite numbers >= 0, got {float(wrong)}")
