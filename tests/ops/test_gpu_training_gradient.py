"""The gradient of plain softmax regression without autograd, by the kernels of a GPU."""

import pytest
import torch
import torch.nn.functional as F
from gpu_cases import gpu_marks, rows_of_two_programs

from softmax_torch import SoftmaxRegression

pytest.importorskip("lightning", reason="training needs Lightning")
from softmax_torch.training import closed_form

pytestmark = gpu_marks


@pytest.mark.parametrize("bias", [True, False])
def test_gradient_is_that_of_autograd(bias, gpu_kernels, device):
    torch.manual_seed(0)
    n = 1 if bias else rows_of_two_programs(gpu_kernels, 10)
    model = SoftmaxRegression(7, 10, bias=bias).to(device)
    x, y = torch.randn(n, 7, device=device), torch.randint(10, (n,)).to(device)
    assert closed_form.applies(model)
    W, b = closed_form.parameters(model)
    objective, logits = closed_form.set_gradient(W, b, x, y, 0.3)
    double = [p.detach().double().cpu().requires_grad_() for p in model.parameters()]
    z = F.linear(x.double().cpu(), *double)
    truth = F.cross_entropy(z, y.cpu()) + 0.3 * double[0].square().sum()
    truth.backward()
    torch.testing.assert_close(objective.double().cpu(), truth.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(logits.double().cpu(), z.detach(), rtol=1e-5, atol=1e-5)
    for p, t in zip(model.parameters(), double, strict=True):
        torch.testing.assert_close(p.grad.double().cpu(), t.grad, rtol=1e-5, atol=1e-6)


def test_targets_that_the_kernels_cannot_read_leave_the_gradient(device):
    model = SoftmaxRegression(7, 10).to(device)
    W, b = closed_form.parameters(model)
    x, y = torch.randn(4, 7, device=device), torch.zeros(4, dtype=torch.int32, device=device)
    with pytest.raises(RuntimeError, match="class indices"):
        closed_form.set_gradient(W, b, x, y, 0.0)
    assert W.grad is None
