"""Callers' mistakes: torch's type of exception, the name of the argument, expected and got."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from softmax_torch import cross_entropy, linear_cross_entropy

N, C, D = 5, 3, 4


def z() -> Tensor:
    return torch.randn(N, C)


def y() -> Tensor:
    return torch.arange(N) % C


def t() -> Tensor:
    return torch.full((N, C), 1 / C)


def y_with(value: int, dtype: torch.dtype = torch.int64) -> Tensor:
    target = y().to(dtype)
    target[3] = value
    return target


# Arguments, and what the message must say. torch raises the same type of exception for them all.
MISTAKES = {
    "integer logits": ((torch.ones(N, C, dtype=torch.long), y()), "input: .* got torch.int64"),
    "scalar logits": ((torch.tensor(1.0), torch.tensor(0)), "input: .* got a scalar"),
    "no classes": ((torch.randn(N, 0), y()), r"at least one class, got shape \(5, 0\)"),
    "too few targets": ((z(), y()[:4]), r"target: .* \(5,\) or .* \(5, 3\), got \(4,\)"),
    "targets for pixels": (
        (torch.randn(2, C, 4), torch.ones(2, 5).long()),
        r"target: .* got \(2, 5",
    ),
    "targets of more dimensions": ((z(), torch.ones(N, 2, 2).long()), r"target: .* got \(5, 2, 2"),
    "floating-point indices": ((z(), y().float()), "target: .* integer .* got torch.float32"),
    "boolean indices": ((z(), y().bool()), "target: .* integer .* got torch.bool"),
    "integer probabilities": ((z(), t().long()), "target: .* floating-point .* got torch.int64"),
    "probabilities of another shape": ((z(), torch.ones(N, 4)), r"target: .* got \(5, 4\)"),
    "probabilities with ignore_index": (
        (z(), t(), {"ignore_index": 1}),
        "ignore_index: not supported for class probabilities, got 1",
    ),
    "class weights of another shape": (
        (z(), y(), {"weight": torch.ones(4)}),
        r"weight: .* 3 classes, got shape \(4,\)",
    ),
    "class weights of another type": (
        (z(), y(), {"weight": torch.ones(C).double()}),
        "weight: expected torch.float32 .* got torch.float64",
    ),
    "too much smoothing": ((z(), y(), {"label_smoothing": 1.5}), r"label_smoothing: .* got 1\.5"),
    "unknown reduction": ((z(), y(), {"reduction": "average"}), "reduction: .* got 'average'"),
    "a negative index": ((z(), y_with(-1)), r"target: .* \[0, 3\) or ignore_index=-100, got -1"),
    "an index of C": ((z(), y_with(C)), r"target: .* \[0, 3\) .* got 3"),
    "an index of C, with weights": (
        (z(), y_with(C), {"weight": torch.ones(C)}),
        "target: .* got 3",
    ),
    "an index in a large batch": (
        (torch.randn(5000, 20), torch.full((5000,), 20)),
        r"target: .* \[0, 20\) .* got 20",
    ),
    "-100 where another is ignored": (
        (z(), y_with(-100), {"ignore_index": -1}),
        "ignore_index=-1, got -100",
    ),
    "another device": ((z(), y().to("meta")), "target: .* cpu .* got meta"),
}

# What torch has no word on, or takes in silence.
OURS = {
    "no tensor": (([[1.0]], y()), TypeError, "input: expected a Tensor, got list"),
    "no target": ((z(), None), TypeError, "target: expected a Tensor, got NoneType"),
    "an index of another integer type": (
        (z(), y_with(-5, torch.int8)),
        IndexError,
        "target: .* got -5",
    ),
    "negative smoothing": (
        (z(), y(), {"label_smoothing": -0.1}),
        RuntimeError,
        r"label_smoothing: .* got -0\.1",
    ),
    "smoothing that is NaN": (
        (z(), y(), {"label_smoothing": float("nan")}),
        RuntimeError,
        "label_smoothing: .* got nan",
    ),
    "smoothing that is no number": (
        (z(), y(), {"label_smoothing": "0.1"}),
        TypeError,
        "expected numbers, got '0.1'",
    ),
    "negative class weights": (
        (z(), y(), {"weight": torch.tensor([1.0, -2.0, 1.0])}),
        ValueError,
        r"weight: expected numbers >= 0, got -2\.0",
    ),
    "class weights that are NaN": (
        (z(), y(), {"weight": torch.full((C,), torch.nan)}),
        ValueError,
        "weight: expected numbers >= 0, got nan",
    ),
    "sample weights of another shape": (
        (z(), y(), {"sample_weight": torch.ones(4)}),
        RuntimeError,
        r"sample_weight: .* \(5,\), got \(4,\)",
    ),
    "integer sample weights": (
        (z(), y(), {"sample_weight": torch.ones(N).long()}),
        RuntimeError,
        "sample_weight: .* got torch.int64",
    ),
    "negative sample weights": (
        (z(), y(), {"sample_weight": -torch.ones(N)}),
        ValueError,
        r"sample_weight: expected numbers >= 0, got -1\.0",
    ),
    "negative z-loss": ((z(), y(), {"z_loss": -1.0}), RuntimeError, r"z_loss: .* got -1\.0"),
    "infinite z-loss": ((z(), y(), {"z_loss": float("inf")}), RuntimeError, "z_loss: .* got inf"),
}


def call(f, input, target, given: dict | None = None) -> Tensor:
    return f(input, target, **(given or {}))


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_that_torch_knows(arguments: tuple, message: str) -> None:
    with pytest.raises(Exception) as torchs:
        call(F.cross_entropy, *arguments)
    with pytest.raises(torchs.type) as ours:
        call(cross_entropy, *arguments)
    assert ours.type is torchs.type
    assert re.search(message, str(ours.value)), str(ours.value)


@pytest.mark.parametrize(("arguments", "kind", "message"), OURS.values(), ids=OURS)
def test_mistakes_that_it_does_not(arguments: tuple, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(cross_entropy, *arguments)


LINEAR = {
    "features": (torch.randn(N, D + 1), torch.randn(C, D), None, r"input: expected 4 .* got .*, 5"),
    "a weight without features": (
        torch.randn(N, D), torch.randn(D), None, r"\(C, D\), got \(5, 4\) and \(4,\)",
    ),
    "positions without a batch": (
        torch.randn(D), torch.randn(C, 2, D), None, r"input: expected shape \(N, D\) .* got \(4,\)",
    ),
    "a bias of another shape": (
        torch.randn(N, D), torch.randn(C, D), torch.randn(D), r"linear_bias: .* \(3,\), got \(4,\)",
    ),
    "a weight of another type": (
        torch.randn(N, D), torch.randn(C, D).double(), None,
        "linear_weight: expected torch.float32 .* got torch.float64",
    ),
    "a bias on another device": (
        torch.randn(N, D), torch.randn(C, D), torch.randn(C, device="meta"),
        "linear_bias: .* cpu .* got meta",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("x", "W", "b", "message"), LINEAR.values(), ids=LINEAR)
def test_mistakes_in_the_linear_layer(x: Tensor, W: Tensor, b: Tensor | None, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        linear_cross_entropy(x, W, y(), linear_bias=b)


OF_TARGETS = [n for n in MISTAKES if not {"logits", "classes", "pixels"} & set(n.split())]


@pytest.mark.parametrize("name", OF_TARGETS)
def test_mistakes_in_the_target_of_a_linear_layer(name: str) -> None:
    (logits, target, *given), message = MISTAKES[name]
    x, W = torch.randn(len(logits), D), torch.randn(logits.shape[1], D)
    with pytest.raises(Exception) as torchs:
        call(F.cross_entropy, logits, target, *given)
    with pytest.raises(torchs.type, match=message):
        linear_cross_entropy(x, W, target, **(given[0] if given else {}))


def test_nothing_is_half_done() -> None:
    x, W = torch.randn(N, D, requires_grad=True), torch.randn(C, D, requires_grad=True)
    logits = z().requires_grad_()
    before = [tensor.detach().clone() for tensor in (x, W, logits)]
    for target in (y_with(7), y_with(-3), y()[:4], y().float()):
        for f in (lambda y: cross_entropy(logits, y), lambda y: linear_cross_entropy(x, W, y)):
            with pytest.raises((IndexError, ValueError, RuntimeError)):
                f(target)
    for tensor, value in zip((x, W, logits), before, strict=True):
        assert tensor.grad is None
        assert torch.equal(tensor, value)
