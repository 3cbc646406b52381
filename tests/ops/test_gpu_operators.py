"""The public functions with GPU kernels: options, layers, derivatives, and no waiting."""

import pytest
import torch
from gpu_cases import assert_near, gpu_marks, on_a_device, problem
from support import common_option, double, in_everything, options, reference
from torch import Tensor

from softmax_torch import cross_entropy, linear_cross_entropy
from softmax_torch.loss import route
from softmax_torch.ops import budgets

pytestmark = gpu_marks


def moved(chosen: dict, device: str) -> dict:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in chosen.items()}


def judged(f, truth, tensors, device, **given) -> None:
    """Compare f on the device with the reference in float64 on the CPU, in value and gradients."""
    ours = in_everything(f, *(t.to(device) for t in tensors), **moved(given, device))
    expected = in_everything(
        truth, *double(*tensors), **dict(zip(given, double(*given.values()), strict=True))
    )
    assert_near([x.cpu() for x in ours], expected, 5e-7)


@common_option
@pytest.mark.parametrize("shape", [(3, 11), (2, 9, 2, 2)], ids=str)
def test_cross_entropy(shape, chosen, gpu_kernels, device):
    torch.manual_seed(0)
    rows = shape[:1] + shape[2:]
    z, y = torch.randn(shape), torch.randint(shape[1], rows)
    y.flatten()[1] = -100
    given = options(chosen, shape[1], rows, torch.float32)
    judged(
        lambda z, **o: cross_entropy(z, y.to(device), **o),
        lambda z, **o: reference(z, y, **o),
        [z],
        device,
        **given,
    )
    t = torch.rand(shape).softmax(1)
    judged(cross_entropy, reference, [z, t], device, **given)


@common_option
@pytest.mark.parametrize("C", [3, 17])
def test_linear_cross_entropy(C, chosen, gpu_kernels, device, monkeypatch):
    monkeypatch.setattr(route, "FEW", 0)
    monkeypatch.setattr(budgets, "logits_budget", lambda x: 3 * C * x.element_size())
    torch.manual_seed(0)
    N, D = 4, 5
    x, W, b = torch.randn(N, D), torch.randn(C, D), torch.randn(C)
    y = torch.randint(C, (N,))
    y[1] = -100
    given = options(chosen, C, (N,), torch.float32)

    def ours(x, W, b, **o):
        return linear_cross_entropy(x, W, y.to(device), linear_bias=b, **o)

    judged(ours, lambda x, W, b, **o: reference(x @ W.t() + b, y, **o), [x, W, b], device, **given)


def test_the_weight_gradient_of_many_half_precision_blocks_is_summed_in_float32(
    device, monkeypatch
):
    N, D, C = 512, 4, 8
    monkeypatch.setattr(route, "FEW", 0)
    monkeypatch.setattr(budgets, "logits_budget", lambda x: 4 * C * x.element_size())
    x = torch.ones(N, D, dtype=torch.bfloat16, device=device)
    W = torch.zeros(C, D, dtype=torch.bfloat16, device=device, requires_grad=True)
    y = torch.zeros(N, dtype=torch.long, device=device)
    linear_cross_entropy(x, W, y, reduction="sum").backward()
    torch.testing.assert_close(W.grad[1].float(), torch.full((D,), N / C, device=device))
    torch.testing.assert_close(W.grad[0].float(), torch.full((D,), N / C - N, device=device))


@pytest.mark.parametrize("frozen", ["x", "W"])
def test_a_frozen_tensor_costs_no_product(frozen, device, monkeypatch):
    monkeypatch.setattr(route, "FEW", 0)
    x, W = torch.randn(6, 4, device=device), torch.randn(9, 4, device=device)
    y = torch.randint(9, (6,), device=device)
    products = []
    mm = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, **k: products.append(0) or mm(*a, **k))
    leaf = (W if frozen == "x" else x).requires_grad_()
    linear_cross_entropy(x, W, y).backward()
    assert leaf.grad is not None
    assert len(products) == 2


def test_derivatives_of_the_gradient_are_those_of_the_formulas(gpu_kernels, device):
    z, y, _ = problem((2, 5), device, torch.float64)
    z.requires_grad_()

    def f(z):
        return cross_entropy(z, y, label_smoothing=0.1, z_loss=0.1)

    assert torch.autograd.gradcheck(f, z)
    assert torch.autograd.gradgradcheck(f, z)
    assert torch.autograd.gradgradcheck(lambda z: cross_entropy(z, y, reduction="none"), z)
    torch.testing.assert_close(
        torch.func.vmap(lambda z, y: cross_entropy(z, y, reduction="sum"))(z[None], y[None]),
        cross_entropy(z, y, reduction="sum")[None],
    )


def test_a_second_backward_pass_and_another_scale(gpu_kernels, device):
    z, y, _ = problem((4, 9), device)
    z.requires_grad_()
    loss = cross_entropy(z, y)
    (first,) = torch.autograd.grad(loss, z, torch.tensor(3.0, device=device), retain_graph=True)
    (second,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(first, 3 * second)


def test_an_index_out_of_range_is_never_silent(gpu_kernels, device):
    z, y, _ = problem((4, 9), device)
    y[1] = 9
    assert cross_entropy(z, y).isnan()
    nll = cross_entropy(z, y, reduction="none")
    assert nll.isnan().tolist() == [False, True, False, False]


def test_no_rows(device):
    z = torch.zeros(0, 9, device=device, requires_grad=True)
    loss = cross_entropy(z, torch.zeros(0, dtype=torch.long, device=device), reduction="sum")
    loss.backward()
    assert loss.item() == 0
    assert z.grad.shape == (0, 9)


@on_a_device
@common_option
def test_nothing_waits_for_the_device(chosen):
    z, y, _ = problem((64, 33), "cuda")
    x, W = torch.randn(64, 8, device="cuda"), torch.randn(33, 8, device="cuda", requires_grad=True)
    given = moved(options(chosen, 33, (64,), torch.float32), "cuda")
    z.requires_grad_()

    def step():
        cross_entropy(z, y, **given).sum().backward()
        linear_cross_entropy(x, W, y, **given).sum().backward()

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
