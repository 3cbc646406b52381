"""Problems for the native kernels of rows, in any layout, their results, and maths in float64."""

from collections.abc import Callable

import torch
from support import assert_close, double, largest
from torch import Tensor

from softmax_torch import maths
from softmax_torch.maths import RowValues, RowWeights, Target, sum_dtype
from softmax_torch.ops import native

OUTSIDE = 77.0
"""What lies around a result, and has to stay there."""

Layout = Callable[[tuple[int, ...]], tuple[tuple[int, ...], Callable[[Tensor], Tensor]]]
MATRICES: dict[str, Layout] = {
    "adjacent": lambda s: ((s[0] + 2, s[1]), lambda m: m[1:-1]),
    "rows with gaps": lambda s: ((2 * s[0] + 2, s[1] + 3), lambda m: m[1:-1:2, 2:-1]),
    "classes with gaps": lambda s: ((s[0] + 2, 2 * s[1] + 2), lambda m: m[1:-1, 1:-1:2]),
    "transposed": lambda s: ((s[1] + 2, s[0] + 3), lambda m: m.t()[1:-2, 1:-1]),
}
POSITIONS: dict[str, Layout] = {
    "positions, adjacent": lambda s: ((s[0] + 2, *s[1:]), lambda m: m[1:-1]),
    "classes last": lambda s: (
        (s[0] + 2, s[2], s[1] + 2),
        lambda m: m[1:-1, :, 1:-1].movedim(-1, 1),
    ),
    "positions with gaps": lambda s: (
        (s[0] + 2, s[1], 2 * s[2] + 2),
        lambda m: m[1:-1, :, 1:-1:2],
    ),
    "samples last": lambda s: ((s[1], s[2], s[0] + 2), lambda m: m.permute(2, 0, 1)[1:-1]),
}


def assert_near(found, truth, dtype: torch.dtype) -> None:
    """Assert equality up to a few roundings of the arithmetic, and one to half precision.

    Infinities and NaN are equal.
    """
    for x, t in zip(found, truth, strict=True):
        assert (x is None) == (t is None)
        if x is None:
            continue
        eps = torch.finfo(sum_dtype(dtype)).eps
        size = largest(t, at_least=1.0)
        rtol, atol = 40 * eps, 4 * eps * size
        if x.dtype in (torch.float16, torch.bfloat16):
            rtol, atol = (
                torch.finfo(x.dtype).eps,
                atol + torch.finfo(x.dtype).smallest_normal / 1024,
            )
        assert_close(x.double(), t, rtol=rtol, atol=atol, equal_nan=True)


def by_maths(z: Tensor, target: Target, weights: RowWeights) -> list[Tensor | None]:
    """Return ``results`` by maths in float64."""
    z, y, u = double(z, *target)
    weights = RowWeights(*double(*weights))
    dz = torch.full_like(z, torch.nan)
    total = maths.weighted_total(z, Target(y, u), weights, dz)
    rows = z.shape[:1] + z.shape[2:]
    gradients = [None if w is None else torch.as_tensor(w).expand(rows) for w in weights]
    return [
        *maths.row_values(z, Target(y, u), True),
        maths.row_vjp(z, Target(y, u), RowValues(*gradients)),
        total,
        dz,
    ]


def results(
    z: Tensor, target: Target, weights: RowWeights, memory: Callable[[], Tensor] | None = None
) -> list[Tensor | None]:
    """Return row numbers, the gradient of their weighted sum, the weighted total, its gradient.

    ``memory`` makes the memory of a gradient.
    """
    memory = memory or (lambda: torch.empty_like(z))
    dtype, rows = sum_dtype(z.dtype), z.shape[:1] + z.shape[2:]
    gradients = [
        None if w is None else torch.as_tensor(w, dtype=dtype).expand(rows) for w in weights
    ]
    dz = memory()
    total = native.weighted_total(z, target, weights, dz)
    return [
        *native.row_values(z, target, True),
        native.row_vjp(z, target, RowValues(*gradients), memory()),
        total,
        dz,
    ]


def problem(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Target, RowWeights]:
    """Return logits, class indices with a vector a row, and weights of all three numbers."""
    generator = torch.Generator().manual_seed(sum(shape))
    rows, real = shape[:1] + shape[2:], sum_dtype(dtype)
    z = (3 * torch.randn(shape, generator=generator)).to(dtype)
    y = torch.randint(shape[1], rows, generator=generator)
    u = torch.rand(shape, generator=generator).to(dtype)
    weights = [torch.rand(rows, generator=generator).to(real) for _ in range(3)]
    return z, Target(y, u), RowWeights(*weights)


def laid_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return memory full of OUTSIDE, and a view of this shape and layout in it."""
    size, view = (MATRICES | POSITIONS)[layout](shape)
    memory = torch.full(size, OUTSIDE, dtype=dtype)
    assert view(memory).shape == shape
    return memory, view(memory)
