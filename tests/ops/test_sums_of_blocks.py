"""The gradient of a half-precision weight, summed over blocks of rows, on a CPU and as on a GPU."""

import pytest
import torch
from torch import Tensor

from softmax_torch.ops import linear_rows
from softmax_torch.ops.linear_rows import GradientSums, Linear

N, D, C, BLOCKS = 96, 7, 300, 4

half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture
def mixed_products(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the CPU a GPU's products with ``out_dtype``; return the names of those made."""
    made: list[str] = []
    mm, addmm = torch.mm, torch.addmm

    def mixed_mm(a: Tensor, b: Tensor, *, out_dtype: torch.dtype) -> Tensor:
        made.append("mm")
        return mm(a.to(out_dtype), b.to(out_dtype))

    def mixed_addmm(
        total: Tensor, a: Tensor, b: Tensor, *, out_dtype: torch.dtype, out: Tensor
    ) -> Tensor:
        assert total is out
        assert total.dtype == out_dtype
        made.append("addmm")
        return addmm(total, a.to(out_dtype), b.to(out_dtype), out=out)

    monkeypatch.setattr(linear_rows, "_has_mixed_products", lambda a: True)
    monkeypatch.setattr(torch, "mm", mixed_mm)
    monkeypatch.setattr(torch, "addmm", mixed_addmm)
    return made


def problem(dtype: torch.dtype) -> tuple[Linear, Tensor]:
    """Return a layer and the gradient of its logits."""
    torch.manual_seed(0)
    x, W, dz = torch.randn(N, D), torch.randn(C, D), torch.randn(N, C) / N
    return Linear(x.to(dtype), W.to(dtype), None), dz.to(dtype)


def summed(linear: Linear, dz: Tensor) -> Tensor:
    """Return dW, summed over blocks, and assert that its sum is kept in float32."""
    sums = GradientSums(linear, (False, True, False))
    for at in (slice(n, n + N // BLOCKS) for n in range(0, N, N // BLOCKS)):
        sums.add(at, dz[at])
    assert sums.dweight is not None
    assert sums.dweight.dtype == torch.float32
    _, dweight, _ = sums.gradients()
    assert dweight is not None
    return dweight


@half
def test_a_gpu_adds_products_to_a_float32_sum(dtype, mixed_products):
    linear, dz = problem(dtype)
    dweight = summed(linear, dz)
    assert mixed_products == ["mm", "addmm", "addmm", "addmm"]
    # The sum is rounded once, at its end.
    truth = (dz.double().t() @ linear.x.double()).to(dtype)
    assert dweight.dtype == dtype
    assert (dweight == truth).float().mean() > 0.99
    torch.testing.assert_close(dweight, truth)


@half
def test_a_cpu_has_the_same_sum_up_to_the_rounding_of_blocks(dtype):
    linear, dz = problem(dtype)
    truth = dz.double().t() @ linear.x.double()
    dweight = summed(linear, dz)
    error = (dweight.double() - truth).abs().max() / truth.abs().max()
    assert error < 2 * torch.finfo(dtype).eps
    if dtype == torch.float16:  # whose blocks are not rounded
        assert (dweight == truth.to(dtype)).float().mean() > 0.99


@half
def test_autocast_of_a_backward_pass_does_not_lower_the_sum(dtype):
    linear, dz = problem(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        within = summed(linear, dz)
    assert torch.equal(within, summed(linear, dz))
