"""Kernels of transformed logits against autograd through the transform, in float64."""

import pytest
import torch
from torch import Tensor

from softmax_torch import maths
from softmax_torch.maths import LogitTransform, RowValues, RowWeights, Target
from softmax_torch.ops import backends, transformed
from softmax_torch.ops.transformed import TransformedKernels, formulas_of

TRANSFORMS = {
    "softcap": LogitTransform(1.5),
    "scale": LogitTransform(None, -0.7),
    "both": LogitTransform(30.0, 2.0),
    "a tensor": LogitTransform(1.5, torch.tensor(0.7)),
    "a scale of 0": LogitTransform(1.5, 0.0),
}
SHAPES = [(7, 4), (5, 70), (4, 6, 5), (0, 3)]
DTYPES = [
    torch.float64,
    pytest.param(torch.float32, marks=pytest.mark.slow),
    torch.bfloat16,
    pytest.param(torch.float16, marks=pytest.mark.slow),
]

transforms = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
vectors = pytest.mark.parametrize("vector", ["no u", "class vector", "vector a row"])


@pytest.fixture(autouse=True)
def blocks_of_two_rows(monkeypatch):
    monkeypatch.setattr(transformed, "BLOCK_ELEMENTS", 60)


def problem(shape, vector, dtype) -> tuple[Tensor, Target, RowWeights]:
    torch.manual_seed(0)
    rows = shape[:1] + shape[2:]
    z, y = (2 * torch.randn(shape)).to(dtype), torch.randint(shape[1], rows)
    u = {"no u": None, "class vector": torch.rand(shape[1]), "vector a row": torch.rand(shape)}
    a, b, c = (torch.rand(rows, dtype=torch.float64) + 0.5 for _ in range(3))
    chosen = u[vector]
    return z, Target(y, chosen), RowWeights(a, None if chosen is None else b, c)


def by_autograd(z, target, weights, transform) -> tuple[RowValues, Tensor, Tensor]:
    """Return row numbers, weighted total and its gradient in float64."""
    z = z.double().clone().requires_grad_()
    u = None if target.u is None else target.u.double()
    transformed_z = transform.apply(z)
    values = maths.row_values(transformed_z, Target(target.y, u), True)
    total = maths.weighted_total(transformed_z, Target(target.y, u), weights)
    (dz,) = torch.autograd.grad(total, z)
    return RowValues(*(None if v is None else v.detach() for v in values)), total.detach(), dz


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@transforms
@vectors
@shapes
def test_every_function(shape, vector, transform, dtype):
    z, target, weights = problem(shape, vector, dtype)
    if target.u is not None:
        target = Target(target.y, target.u.to(maths.sum_dtype(dtype)))
    kernels = TransformedKernels(backends.kernels(z), transform)
    truth, total, dz = by_autograd(z, target, weights, transform)
    close = (
        {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    )
    of_dz = close
    if dtype in (torch.bfloat16, torch.float16):
        of_dz = {"rtol": torch.finfo(dtype).eps, "atol": 1e-5}
    w = RowWeights(*(None if x is None else x.to(maths.sum_dtype(dtype)) for x in weights))

    for found, true in zip(kernels.row_values(z, target, True), truth, strict=True):
        assert (found is None) == (true is None)
        if found is not None:
            torch.testing.assert_close(found.double(), true, **close)
    memory = torch.full_like(z, torch.nan)
    found = kernels.weighted_total(z, target, w, memory)
    torch.testing.assert_close(found.double(), total, **close)
    torch.testing.assert_close(memory.double(), dz, **of_dz)
    torch.testing.assert_close(kernels.weighted_total(z, target, w).double(), total, **close)
    lse = truth.lse.to(w.a.dtype)
    g = RowValues(w.a, w.b, 2 * w.c * lse)
    torch.testing.assert_close(kernels.row_vjp(z, target, g).double(), dz, **of_dz)
    formulas = formulas_of(kernels)
    torch.testing.assert_close(formulas.row_vjp(z, target, g).double(), dz, **of_dz)
    one = torch.ones((), dtype=w.a.dtype)
    torch.testing.assert_close(formulas.total_vjp(z, target, w, one).double(), dz, **of_dz)
    same = z.clone()
    kernels.weighted_total(same, target, w, same)  # the gradient may overwrite the logits
    assert torch.equal(same, memory)


@pytest.mark.usefixtures("kernels")
@transforms
@shapes
def test_statistics(shape, transform):
    z, (y, _), _ = problem(shape, "no u", torch.float64)
    found = TransformedKernels(backends.kernels(z), transform).row_statistics(z, y)
    if len(z) > 0:
        torch.testing.assert_close(found, maths.row_statistics(transform.apply(z), y))
    else:
        assert found.argmax.shape == (0,)


def test_kernels_without_a_transform_have_the_formulas_of_maths():
    assert formulas_of(backends.kernels(torch.zeros(1))) is maths
