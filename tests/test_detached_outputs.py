"""Outputs of a loss without their graph: the same numbers, and the loss as without them."""

from typing import Any

import pytest
import torch
from support import every_option, options, products
from torch import Tensor

from softmax_torch import (
    cross_entropy_outputs,
    linear_cross_entropy,
    linear_cross_entropy_outputs,
)
from softmax_torch.ops import budgets

N, D, C = 9, 4, 7
DTYPES = [
    torch.float32,
    pytest.param(torch.float64, marks=pytest.mark.slow),
    torch.bfloat16,
    pytest.param(torch.float16, marks=pytest.mark.slow),
]
NAMES = ("lse", "log_prob", "z_loss", "argmax", "in_top_k", "entropy")


def arguments(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features, weight, bias and class indices, some of which the default ignores."""
    torch.manual_seed(0)
    x, W, b = (torch.randn(*s, dtype=dtype, requires_grad=True) for s in ((N, D), (C, D), (C,)))
    y = torch.randint(C, (N,))
    y[2] = -100
    return x, W, b, y


def compare(detached: Any, others: Any) -> None:
    for name, value, other in zip(detached._fields, detached, others, strict=True):
        if name == "loss" or value is None:
            assert (value is None) == (other is None)
        else:
            assert not value.requires_grad
            torch.testing.assert_close(value, other.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("blocks", [False, True], ids=["", "blocks"])
@pytest.mark.parametrize("dtype", DTYPES)
@every_option
def test_they_are_those_with_a_graph(
    chosen: dict, dtype: torch.dtype, blocks: bool, monkeypatch: Any
) -> None:
    if blocks:
        monkeypatch.setattr(budgets, "logits_budget", lambda x: 2 * C * x.element_size())
    x, W, b, y = arguments(dtype)
    given = {"linear_bias": b} | options(chosen, C, (N,), dtype)
    names = {"outputs": NAMES, "top_k": 2}
    detached = linear_cross_entropy_outputs(x, W, y, **names, detach=True, **given)
    compare(detached, linear_cross_entropy_outputs(x, W, y, **names, **given))
    loss = linear_cross_entropy(x, W, y, **given)
    close = {} if dtype.itemsize > 2 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(detached.loss, loss, **close)
    ours, theirs = (torch.autograd.grad(v.sum(), (x, W, b)) for v in (detached.loss, loss))
    torch.testing.assert_close(ours, theirs, **close)
    z = torch.nn.functional.linear(x, W, b)
    del given["linear_bias"]
    compare(
        cross_entropy_outputs(z, y, **names, detach=True, **given),
        cross_entropy_outputs(z, y, **names, **given),
    )


@pytest.mark.parametrize("names", [("lse",), ("log_prob",), ("lse", "argmax")])
def test_each_alone(names: tuple[str, ...]) -> None:
    x, W, b, y = arguments()
    weight = torch.ones(C)  # in blocks: a layer with few logits and no class weights keeps them
    given = {"linear_bias": b, "weight": weight, "outputs": names}
    detached = linear_cross_entropy_outputs(x, W, y, detach=True, **given)
    compare(detached, linear_cross_entropy_outputs(x, W, y, **given))


def test_class_probabilities_have_a_log_sum_exp() -> None:
    x, W, b, _ = arguments()
    given = {"linear_bias": b, "outputs": ("lse", "argmax"), "weight": torch.ones(C)}
    t = torch.rand(N, C).softmax(1)
    detached = linear_cross_entropy_outputs(x, W, t, detach=True, **given)
    compare(detached, linear_cross_entropy_outputs(x, W, t, **given))


def test_a_certain_prediction_keeps_its_digits() -> None:
    """lse - z_y would be 0."""
    x, W = torch.ones(1, 1, requires_grad=True), torch.tensor([[30.0], [0.0], [0.0]])
    y, weight = torch.tensor([0]), torch.ones(3)
    found = linear_cross_entropy_outputs(
        x, W, y, outputs=("log_prob",), detach=True, weight=weight
    ).log_prob
    torch.testing.assert_close(
        -found.double(), torch.tensor([-30.0]).double().exp() * 2, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("detach", [True, False])
def test_the_backward_pass_builds_no_logits_for_them(detach: bool) -> None:
    x, W, b, y = arguments()
    given = {"linear_bias": b, "weight": torch.ones(C), "outputs": NAMES}

    def step() -> None:
        linear_cross_entropy_outputs(x, W, y, detach=detach, **given).loss.backward()

    assert products(step, C) == (3 if detach else 4)


def test_a_wrong_class_index_is_named() -> None:
    x, W, b, y = arguments()
    y[3] = C
    for weight in (None, torch.ones(C)):
        with pytest.raises(IndexError, match=rf"target: expected class indices in \[0, {C}\).*{C}"):
            linear_cross_entropy_outputs(
                x, W, y, linear_bias=b, weight=weight, outputs=("argmax", "log_prob"), detach=True
            )


@pytest.mark.slow
def test_when_compiled() -> None:
    torch.compiler.reset()
    x, W, b, y = arguments()

    def outputs(x: Tensor, W: Tensor, y: Tensor, b: Tensor) -> Any:
        return linear_cross_entropy_outputs(
            x, W, y, linear_bias=b, outputs=NAMES, detach=True, softcap=5.0
        )

    found = torch.compile(outputs, fullgraph=True, backend="aot_eager")(x, W, y, b)
    expected = outputs(x, W, y, b)
    compare(found, expected)
    gradients = (torch.autograd.grad(each.loss, (x, W, b)) for each in (found, expected))
    torch.testing.assert_close(*gradients)
    torch.compiler.reset()
