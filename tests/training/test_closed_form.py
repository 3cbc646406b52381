"""The closed-form gradient equals autograd's, and is used where no hook or option forbids it."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from trainers import trainer

from softmax_torch import SoftmaxRegression
from softmax_torch.data import DigitsDataModule
from softmax_torch.ops import backends
from softmax_torch.ops.native import library, linear
from softmax_torch.training import LitSoftmaxRegression, closed_form


@pytest.mark.parametrize("kernels", ["torch", "native"])
@pytest.mark.parametrize("n", [1, 7, 5000])  # 50000 logits are processed in blocks
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_the_gradient_is_no_further_from_the_truth_than_autograds(
    n: int, bias: bool, l2: float, kernels: str
) -> None:
    if kernels == "native" and library.load() is None:
        pytest.skip(library.reason())
    torch.manual_seed(0)
    model = SoftmaxRegression(12, 10, bias)
    x, y = torch.randn(n, 3, 4), torch.randint(10, (n,))
    with backends.cpu_kernels(kernels):
        objective, logits = closed_form.set_gradient(*closed_form.parameters(model), x, y, l2)
    got = [objective, logits, *(p.grad for p in model.parameters())]

    def by_autograd(dtype: torch.dtype) -> list[Tensor]:
        leaves = [p.detach().to(dtype).requires_grad_() for p in model.parameters()]
        z = F.linear(x.flatten(1).to(dtype), *leaves)
        loss = F.cross_entropy(z, y) + l2 * leaves[0].square().sum()
        gradient = torch.autograd.grad(loss, leaves)
        return [loss.detach(), z.detach(), *gradient]

    for mine, theirs, truth in zip(
        got, by_autograd(torch.float32), by_autograd(torch.float64), strict=True
    ):
        assert mine is not None
        slack = 1e-7 * float(truth.abs().max())
        error = float((mine.double() - truth).abs().max())
        assert error <= 2 * float((theirs.double() - truth).abs().max()) + slack
    # a second time, over the gradient that is there
    before = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    with backends.cpu_kernels(kernels):
        closed_form.set_gradient(*closed_form.parameters(model), x, y, l2)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))


def test_a_class_out_of_range_writes_nothing() -> None:
    model = SoftmaxRegression(3, 4)
    with pytest.raises((IndexError, RuntimeError)):
        closed_form.set_gradient(
            *closed_form.parameters(model), torch.randn(2, 3), torch.tensor([0, 4]), 0.0
        )
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("classes", "change", "native"),
    [
        (64, lambda x: x, True),
        (65, lambda x: x, False),
        (3, lambda x: torch.empty(6, 10).t()[:, :6].copy_(x), False),
        (3, lambda x: torch.empty(10, 7)[:, :6].copy_(x), False),
    ],
    ids=["64 classes", "65 classes", "columns", "a part of the columns"],
)
def test_native_kernels_get_what_they_take(
    classes: int, change: Any, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library.load() is None:
        pytest.skip(library.reason())
    calls = []
    mean_nll = linear.mean_nll
    monkeypatch.setattr(linear, "mean_nll", lambda *a, **k: calls.append(a) or mean_nll(*a, **k))
    weight, bias = closed_form.parameters(SoftmaxRegression(6, classes))
    x, y = change(torch.randn(10, 6)), torch.arange(10) % 3
    with backends.cpu_kernels("native"):
        closed_form.set_gradient(weight, bias, x, y, 0.1)
    assert len(calls) == native
    assert not any(isinstance(t, Tensor) and t.requires_grad for args in calls for t in args)


def changed(change: Any) -> nn.Module:
    model = SoftmaxRegression(3, 4)
    return change(model) or model


class Own(SoftmaxRegression):
    pass


@pytest.mark.parametrize(
    "change",
    [
        lambda m: Own(3, 4),
        lambda m: m.double(),
        lambda m: m.requires_grad_(False),
        lambda m: setattr(m, "linear", nn.LazyLinear(4)),
        lambda m: nn.utils.parametrizations.weight_norm(m.linear) and None,
        lambda m: m.register_forward_hook(print) and None,
        lambda m: m.linear.register_forward_pre_hook(print) and None,
        lambda m: m.linear.register_full_backward_hook(print) and None,
    ],
)
def test_models_that_are_not_plain_use_autograd(change: Any) -> None:
    assert closed_form.applies(SoftmaxRegression(3, 4))
    assert not closed_form.applies(changed(change))


class Watch(Callback):
    def __init__(self) -> None:
        self.calls = 0

    def on_after_backward(self, *_: Any) -> None:
        self.calls += 1


def fitted(*callbacks: Callback, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """Return the weight after a fit, and how many gradients were computed by the formula."""
    calls = []
    real = closed_form.set_gradient
    with monkeypatch.context() as patch:
        patch.setattr(closed_form, "set_gradient", lambda *a: (calls.append(1), real(*a))[1])
        torch.manual_seed(0)
        lit = LitSoftmaxRegression(
            64, 10, C=1.0, optimizer=partial(torch.optim.Adam, lr=0.01), **options
        )
        trainer(2, *callbacks).fit(lit, DigitsDataModule(batch_size=50))
    return lit.model.linear.weight.detach(), len(calls)


def test_formula_and_autograd_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    formula, steps = fitted(monkeypatch=monkeypatch)
    autograd, none = fitted(watch, monkeypatch=monkeypatch)
    assert (steps, none, watch.calls) == (52, 0, 52)
    torch.testing.assert_close(formula, autograd, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"class_weight": "balanced"}, {"label_smoothing": 0.1}])
def test_objectives_without_a_formula_use_autograd(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fitted(monkeypatch=monkeypatch, **options)[1] == 0
