"""The Hessian of softmax regression is known in closed form."""

import pytest
import torch
from torch import Tensor
from torch.func import hessian

from softmax_torch import linear_cross_entropy
from softmax_torch.ops import budgets


def closed_form(x: Tensor, W: Tensor) -> Tensor:
    """Return d2 loss / dW_k dW_l = X^T diag(p_k (delta_kl - p_l)) X / N, of shape (C, D, C, D)."""
    p = (x @ W.t()).softmax(1)
    curvature = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    return torch.einsum("nkl,nd,ne->kdle", curvature, x, x) / len(x)


def by_double_backward(f, W: Tensor) -> Tensor:
    (g,) = torch.autograd.grad(f(W), W, create_graph=True)
    rows = [torch.autograd.grad(g_i, W, retain_graph=True)[0] for g_i in g.flatten()]
    return torch.stack(rows).view(*W.shape, *W.shape)


HESSIANS = {
    "torch.func": lambda f, W: hessian(f)(W),
    "torch.autograd.functional": torch.autograd.functional.hessian,
    "double backward": by_double_backward,
}


@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks"])
@pytest.mark.parametrize("classes", [5, 2])
@pytest.mark.parametrize("hessian_of", HESSIANS.values(), ids=HESSIANS.keys())
def test_hessian_of_the_linear_layer_is_the_closed_form(
    hessian_of, classes, blocks, kernels, monkeypatch
):
    if blocks:
        monkeypatch.setattr(budgets, "logits_budget", lambda x: 2 * classes * x.element_size())
    torch.manual_seed(0)
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randint(classes, (7,))
    W = torch.randn(classes, 3, dtype=torch.float64, requires_grad=True)
    found = hessian_of(lambda W: linear_cross_entropy(x, W, y), W)
    torch.testing.assert_close(found, closed_form(x, W))
