"""Passes of solvers are made in float32 proper, whatever is allowed elsewhere."""

from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from softmax_torch.ops.full_precision import BACKENDS, full_precision
from softmax_torch.solvers.block import DenseBlock

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")


class Precisions(TorchDispatchMode):
    """Within it, note the precision that is allowed at each matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, ...]] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.name() in PRODUCTS:
            self.seen.append(tuple(backend.fp32_precision for backend in BACKENDS))
        return operation(*args, **(kwargs or {}))


@pytest.fixture(params=["highest", "high", "medium"])
def allowed(request: pytest.FixtureRequest) -> Iterator[str]:
    """The precision that a user allows for the whole program."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def block() -> DenseBlock:
    x = torch.randn(6, 4)
    return DenseBlock(x, x, None, False)


def test_passes_are_not_rounded_and_the_setting_comes_back(allowed):
    theta, y, x = torch.randn(3, 5), torch.arange(6) % 3, block()
    with Precisions() as precisions:
        torch.mm(theta, theta.T)
        x.loss_and_gradient(theta, y, None, 3, True)
        x.logits(theta, True)
        x.transposed(torch.randn(6, 3), True)
        torch.mm(theta, theta.T)
    before, *passes, after = precisions.seen
    assert passes == [("ieee", "ieee")] * 4
    assert before == after
    assert (before[0] == "tf32") == (allowed != "highest")
    assert torch.get_float32_matmul_precision() == allowed


def test_the_setting_comes_back_after_an_error(allowed):
    with pytest.raises(RuntimeError):
        block().dot(torch.ones(3, 7))
    assert torch.get_float32_matmul_precision() == allowed


def test_autocast_does_not_lower_passes():
    torch.manual_seed(0)
    W, r, x = torch.randn(3, 4), torch.randn(6, 3), block()
    with torch.autocast("cpu", torch.bfloat16):
        within = x.dot(W), x.transposed_dot(r)
    assert within[0].dtype == within[1].dtype == torch.float32
    assert torch.equal(within[0], x.dot(W))
    assert torch.equal(within[1], x.transposed_dot(r))


def test_products_in_float64_are_left_alone(allowed):
    before = [backend.fp32_precision for backend in BACKENDS]
    with full_precision(torch.float64, torch.device("cpu")):
        assert [backend.fp32_precision for backend in BACKENDS] == before
