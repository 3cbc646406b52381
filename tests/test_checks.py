"""Callers' mistakes: torch's type of exception, the name of the argument, expected and got."""

import math
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from softmax_torch import cross_entropy, linear_cross_entropy
from softmax_torch.loss import route

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


# Arguments, and a pattern of the message. torch raises the same type of exception for each.
MISTAKES = {
    "integer logits": ((torch.ones(N, C, dtype=torch.long), y()), "input: .* got torch.int64"),
    "scalar logits": ((torch.tensor(1.0), torch.tensor(0)), "input: .* got a scalar"),
    "no classes": ((torch.randn(N, 0), y()), r"at least one class, got shape \(5, 0\)"),
    "too few targets": ((z(), y()[:4]), r"target: .* \(5,\) or .* \(5, 3\), got \(4,\)"),
    "targets for pixels": (
        (torch.randn(2, C, 4), torch.ones(2, 5).long()),
        r"target: .* got \(2, 5",
    ),
    "targets of another batch and shape": (
        (z(), torch.ones(4, 2).long()),
        r"target: .* \(5,\) .* got \(4, 2\)",
    ),
    "two targets of one sample": ((torch.randn(C), torch.ones(2).long()), r"target: .* got \(2,\)"),
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
    "class weights that are a list": (
        (z(), y(), {"weight": [1.0] * C}),
        "weight: expected a Tensor, got list",
    ),
    "class weights on another device": (
        (z(), y(), {"weight": torch.ones(C, device="meta")}),
        "weight: .* cpu .* got meta",
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
    "no index to ignore": (
        (z(), y(), {"ignore_index": None}),
        "ignore_index: expected an integer, got None",
    ),
    "a fraction to ignore": (
        (z(), y(), {"ignore_index": 1.5}),
        r"ignore_index: expected an integer, got 1\.5",
    ),
    "another device": ((z(), y().to("meta")), "target: .* cpu .* got meta"),
}

# Mistakes that torch does not know or does not report.
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
    "smoothing that is not a number": (
        (z(), y(), {"label_smoothing": "0.1"}),
        TypeError,
        "expected numbers, got '0.1'",
    ),
    "class weights that are NaN": (
        (z(), y(), {"weight": torch.full((C,), torch.nan)}),
        ValueError,
        "weight: expected numbers, got nan",
    ),
    "sample weights of another shape": (
        (z(), y(), {"sample_weight": torch.ones(4)}),
        RuntimeError,
        r"sample_weight: .* \(5,\), got \(4,\)",
    ),
    "complex sample weights": (
        (z(), y(), {"sample_weight": torch.ones(N) + 0j}),
        RuntimeError,
        "sample_weight: .* got torch.complex64",
    ),
    "negative integer sample weights": (
        (z(), y(), {"sample_weight": -torch.ones(N).long()}),
        ValueError,
        "sample_weight: .* got -1",
    ),
    "a softcap of 0": ((z(), y(), {"softcap": 0.0}), ValueError, "softcap: .* got 0.0"),
    "an infinite softcap": ((z(), y(), {"softcap": math.inf}), ValueError, "softcap: .* got inf"),
    "a softcap that is a tensor": (
        (z(), y(), {"softcap": torch.ones(())}),
        TypeError,
        r"softcap: expected a number, got tensor",
    ),
    "a scale that is NaN": (
        (z(), y(), {"logit_scale": math.nan}),
        ValueError,
        "logit_scale: .* got nan",
    ),
    "a scale per class": (
        (z(), y(), {"logit_scale": torch.ones(C)}),
        ValueError,
        r"logit_scale: .* got torch.float32 of shape \(3,\)",
    ),
    "a scale that is infinite on a CPU": (
        (z(), y(), {"logit_scale": torch.tensor(math.inf)}),
        ValueError,
        "logit_scale: .* got inf",
    ),
    "a normalizer of 0": ((z(), y(), {"normalizer": 0}), ValueError, "normalizer: .* got 0"),
    "a normalizer of a sum": (
        (z(), y(), {"normalizer": 3, "reduction": "sum"}),
        ValueError,
        "normalizer: expected reduction=\"mean\".* got reduction='sum'",
    ),
    "a boolean normalizer": (
        (z(), y(), {"normalizer": True}),
        TypeError,
        "normalizer: expected a number, got True",
    ),
    "negative sample weights": (
        (z(), y(), {"sample_weight": -torch.ones(N)}),
        ValueError,
        r"sample_weight: expected numbers >= 0, got -1\.0",
    ),
    "sample weights that are a list": (
        (z(), y(), {"sample_weight": [1.0] * N}),
        TypeError,
        "sample_weight: expected a Tensor, got list",
    ),
    "sample weights on another device": (
        (z(), y(), {"sample_weight": torch.ones(N, device="meta")}),
        RuntimeError,
        "sample_weight: .* cpu .* got meta",
    ),
    "a z-loss that is NaN": (
        (z(), y(), {"z_loss": float("nan")}),
        RuntimeError,
        "z_loss: .* got nan",
    ),
    "negative z-loss": ((z(), y(), {"z_loss": -1.0}), RuntimeError, r"z_loss: .* got -1\.0"),
    "infinite z-loss": ((z(), y(), {"z_loss": float("inf")}), RuntimeError, "z_loss: .* got inf"),
}


def call(f, input, target, given: dict | None = None) -> Tensor:
    return f(input, target, **(given or {}))


def refused(message: str, ours: Callable[[], Tensor], torchs: Callable[[], Tensor]) -> None:
    """Assert that both raise the same type of exception, and that ours names the mistake."""
    with pytest.raises(Exception) as expected:
        torchs()
    with pytest.raises(expected.type) as raised:
        ours()
    assert raised.type is expected.type
    assert re.search(message, str(raised.value)), str(raised.value)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_that_torch_knows(arguments: tuple, message: str, training: bool) -> None:
    """Calls with and without a gradient take different routes."""
    logits, *rest = arguments
    if training and logits.is_floating_point():
        logits = logits.clone().requires_grad_()
    refused(
        message,
        lambda: call(cross_entropy, logits, *rest),
        lambda: call(F.cross_entropy, logits, *rest),
    )


@pytest.mark.parametrize(("arguments", "kind", "message"), OURS.values(), ids=OURS)
def test_mistakes_that_torch_does_not_know(
    arguments: tuple, kind: type[Exception], message: str
) -> None:
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
    "a scalar input": (
        torch.tensor(1.0), torch.randn(C, D), None, r"\(C, D\), got \(\) and \(3, 4\)",
    ),
    "no features": (None, torch.randn(C, D), None, "input: expected a Tensor, got NoneType"),
    "a weight that is a list": (
        torch.randn(N, D), [[1.0] * D] * C, None, "linear_weight: expected a Tensor, got list",
    ),
    "a bias that is a list": (
        torch.randn(N, D), torch.randn(C, D), [1.0] * C, "linear_bias: expected a Tensor, got list",
    ),
    "integer features": (
        torch.ones(N, D).long(), torch.ones(C, D).long(), None, "input: .* got torch.int64",
    ),
    "complex features": (
        torch.randn(N, D).cfloat(), torch.randn(C, D).cfloat(), None,
        "input: .* got torch.complex64",
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


@pytest.fixture(params=["few", "many"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the route of a linear layer with few logits, or with many."""
    if request.param == "many":
        monkeypatch.setattr(route, "FEW", 0)


@pytest.mark.parametrize(("x", "W", "b", "message"), LINEAR.values(), ids=LINEAR)
def test_mistakes_in_the_linear_layer(x, W, b, message: str, size: None) -> None:
    refused(
        message,
        lambda: linear_cross_entropy(x, W, y(), linear_bias=b),
        lambda: F.cross_entropy(F.linear(x, W, b), y()),
    )


def test_a_bias_is_not_broadcast() -> None:
    """F.linear broadcasts it; here it is a mistake, as in nn.Linear."""
    x, W = torch.randn(N, D), torch.randn(C, D)
    with pytest.raises(RuntimeError, match=r"linear_bias: expected shape \(3,\), got \(1,\)"):
        linear_cross_entropy(x, W, y(), linear_bias=torch.zeros(1))


OF_TARGETS = [n for n in MISTAKES if not {"logits", "classes", "pixels", "sample"} & set(n.split())]


@pytest.mark.parametrize("name", OF_TARGETS)
def test_mistakes_in_the_target_of_a_linear_layer(name: str, size: None) -> None:
    (logits, target, *given), message = MISTAKES[name]
    x, W = torch.randn(len(logits), D), torch.randn(logits.shape[1], D)
    refused(
        message,
        lambda: linear_cross_entropy(x, W, target, **(given[0] if given else {})),
        lambda: call(F.cross_entropy, logits, target, *given),
    )


def test_nothing_is_half_done(size: None) -> None:
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
