"""What a Laplace approximation reads: the weights of a head, and the training samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Head", "Samples", "check_head", "samples_of"]

NUMBERS = 1 << 22
"""Largest number of features or probabilities that are worked on together: 32 MiB."""


class Head(NamedTuple):
    """Weights (C, D) and biases (C,) or None, float64 on a CPU."""

    weight: Tensor
    bias: Tensor | None

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the class probabilities (b, C) of samples (b, D)."""
        z = x @ self.weight.T
        return (z if self.bias is None else z + self.bias).softmax(1)


class Samples(NamedTuple):
    """Some training samples, float64: features (b, D), probabilities (b, C), weights (b,)."""

    x: Tensor
    p: Tensor
    w: Tensor


def check_head(weight: Tensor, bias: Tensor | None) -> Head:
    """Return the weights of a head in float64; raise ValueError for unusable ones."""
    if weight.dim() != 2 or len(weight) < 2:
        raise ValueError(
            f"weight: expected shape (C, D) with C >= 2 classes, got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected shape ({len(weight)},), got {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and not tensor.isfinite().all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return Head(weight.detach().cpu().double(), None if bias is None else bias.cpu().double())


def samples_of(
    features: Tensor | Iterable[Tensor | tuple[Tensor, Tensor]], head: Head
) -> Iterator[Samples]:
    """Yield the training samples of weight > 0, in parts that fit into memory.

    Args:
        features: samples (n, D); or batches (b, D), or pairs of (b, D) and weights (b,), which are
            read once.
        head: the head on these features.

    Raises:
        ValueError, TypeError: as ``laplace.fit``.
    """
    C, D = head.weight.shape
    seen, rows = False, max(1, NUMBERS // max(C, D))
    for batch in [features] if isinstance(features, Tensor) else features:
        x, w = batch if isinstance(batch, tuple) else (batch, None)
        w = _checked(x, w, D)
        used = w > 0
        for x_b, w_b in zip(torch.split(x[used], rows), torch.split(w[used], rows), strict=True):
            x_b = x_b.cpu().double()
            if len(x_b):
                seen = True
                yield Samples(x_b, head.probabilities(x_b), w_b)
    if not seen:
        raise ValueError("features: expected training samples of weight > 0, got none")


def _checked(x: Tensor, w: Tensor | None, D: int) -> Tensor:
    """Return the weights (b,) of a batch in float64, where x (b, D) is; raise for unusable ones."""
    if not isinstance(x, Tensor):
        raise TypeError(f"features: expected tensors, got {type(x).__name__}")
    if x.dim() != 2 or x.shape[1] != D:
        raise ValueError(f"features: expected shape (n, {D}), got {tuple(x.shape)}")
    if not x.isfinite().all():
        row = int((~x.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"features: expected finite numbers, got NaN or infinity in row {row}")
    if w is None:
        return torch.ones(len(x), dtype=torch.float64)
    w = w.detach().cpu().double()
    if w.shape != x.shape[:1] or not (w.isfinite() & (w >= 0)).all():
        raise ValueError(
            f"features: expected weights ({len(x)},) that are finite and >= 0, got {tuple(w.shape)}"
            + (f" with a least of {w.amin().item()}" if w.numel() else "")
        )
    return w
