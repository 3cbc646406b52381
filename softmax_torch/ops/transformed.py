"""Kernels of transformed logits: a softcap and a scale, block by block around other kernels.

    z' = scale softcap tanh(z / softcap)        dz = dz' scale (1 - tanh(z / softcap)^2)

On a CPU a block of z' stays in cache between the transform, the kernel and the product with the
slope. It is float32 for half-precision logits, so that only the gradient is rounded to their dtype.
No tensor of the size of all logits is held.
"""

from __future__ import annotations

import types
from collections.abc import Iterator

import torch
from torch import Tensor

from softmax_torch import maths
from softmax_torch.maths import (
    LogitTransform,
    RowStatistics,
    RowValues,
    RowWeights,
    Target,
    sum_dtype,
)
from softmax_torch.ops.interfaces import Kernels

__all__ = ["TransformedKernels", "formulas_of"]

BLOCK_ELEMENTS = 1 << 18
"""Logits of a block on a CPU: 1 MiB of float32, and as much for z', the slope and dz'."""

DEVICE_BLOCK_ELEMENTS = 1 << 24
"""The same elsewhere: 64 MiB each, which take a GPU longer to read than a kernel to launch."""


class TransformedKernels:
    """The functions of ``interfaces.Kernels`` for logits that are transformed first.

    Attributes:
        kernels: what computes the rows of z'.
        transform: z' as a function of z.
        formulas: the same in differentiable formulas.
    """

    def __init__(self, kernels: Kernels, transform: LogitTransform) -> None:
        self.kernels, self.transform = kernels, transform
        self.formulas = TransformedFormulas(transform)
        self.__name__ = f"{kernels.__name__} on transformed logits"

    def row_values(self, z: Tensor, target: Target, lse: bool = False) -> RowValues:
        """Return the row numbers of z'."""
        shape, dtype = z.shape[:1] + z.shape[2:], sum_dtype(z.dtype)
        needed = (target.y is not None, target.u is not None, lse)
        result = RowValues(*(z.new_empty(shape, dtype=dtype) if n else None for n in needed))
        for at in _blocks(z):
            z_b = self.transform.apply(z[at])
            values = self.kernels.row_values(z_b, target.rows(at), lse)
            for whole, part in zip(result, values, strict=True):
                if whole is not None and part is not None:
                    whole[at] = part
        return result

    def row_vjp(self, z: Tensor, target: Target, g: RowValues, dz: Tensor | None = None) -> Tensor:
        """Return the gradient dz, of z's shape and dtype; write it into ``dz`` if given."""
        dz = torch.empty_like(z) if dz is None else dz
        for at in _blocks(z):
            z_b, slope = self.transform.with_slope(z[at])
            g_b = g.rows(at)
            dz[at] = self.kernels.row_vjp(z_b, target.rows(at), g_b).mul_(slope)
        return dz

    def weighted_total(
        self, z: Tensor, target: Target, weights: RowWeights, dz: Tensor | None = None
    ) -> Tensor:
        """Return the weighted total of z', and write its gradient to dz, which may be z."""
        total = z.new_zeros((), dtype=sum_dtype(z.dtype))
        for at in _blocks(z):
            own = target.rows(at), weights.rows(at)
            if dz is None:
                total += self.kernels.weighted_total(self.transform.apply(z[at]), *own)
                continue
            z_b, slope = self.transform.with_slope(z[at])
            of_z_b = torch.empty_like(z_b)
            total += self.kernels.weighted_total(z_b, *own, of_z_b)
            dz[at] = of_z_b.mul_(slope)
        return total

    def row_statistics(self, z: Tensor, y: Tensor | None = None) -> RowStatistics:
        """Return the statistics of z'."""
        parts = [
            self.kernels.row_statistics(self.transform.apply(z[at]), None if y is None else y[at])
            for at in _blocks(z)
        ]
        return RowStatistics.joined(parts) if parts else self.kernels.row_statistics(z, y)


class TransformedFormulas:
    """The functions of ``maths`` for logits that are transformed first, all differentiable."""

    def __init__(self, transform: LogitTransform) -> None:
        self.transform = transform

    def row_vjp(self, z: Tensor, target: Target, g: RowValues) -> Tensor:
        """Return the gradient dz of the row numbers of z'."""
        transformed, slope = self.transform.with_slope(z)
        return (maths.row_vjp(transformed, target, g) * slope).to(z.dtype)

    def row_vjp_u(self, z: Tensor, u: Tensor, g_smooth: Tensor) -> Tensor:
        """Return the gradient du of the row numbers of z'."""
        return maths.row_vjp_u(self.transform.apply(z), u, g_smooth)

    def total_vjp(self, z: Tensor, target: Target, weights: RowWeights, g: Tensor) -> Tensor:
        """Return the gradient dz of g times the weighted total of z'."""
        transformed, slope = self.transform.with_slope(z)
        return (maths.total_vjp(transformed, target, weights, g) * slope).to(z.dtype)


def formulas_of(kernels: Kernels) -> types.ModuleType | TransformedFormulas:
    """Return the differentiable formulas of what these kernels compute."""
    return kernels.formulas if isinstance(kernels, TransformedKernels) else maths


def _blocks(z: Tensor) -> Iterator[slice]:
    """Yield blocks of samples, whose logits stay in cache on a CPU."""
    elements = z.shape[1:].numel()
    most = BLOCK_ELEMENTS if z.is_cpu else DEVICE_BLOCK_ELEMENTS
    step = max(1, most // max(elements, 1))
    for n in range(0, len(z), step):
        yield slice(n, n + step)
