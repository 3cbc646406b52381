"""route_of names the route that a call takes; show_config names versions and kernels."""

import doctest

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import softmax_torch
from softmax_torch import cross_entropy, linear_cross_entropy, maths, route_of
from softmax_torch.loss import route
from softmax_torch.ops import backends, cpu, linear_rows, rows

N, C, D = 6, 5, 3
Y = torch.arange(N) % C


def z(**kw) -> Tensor:
    return torch.zeros(N, C, requires_grad=True, **kw)


def layer(D: int, rows: int = N) -> tuple[Tensor, Tensor, Tensor]:
    return torch.zeros(rows, D), torch.zeros(C, D, requires_grad=True), torch.arange(rows) % C


LOGITS = {
    "default options": ({}, "mean NLL"),
    "a sum": ({"reduction": "sum"}, "weighted total"),
    "smoothing": ({"label_smoothing": 0.1}, "weighted total"),
    "class weights": ({"weight": torch.ones(C)}, "weighted total"),
    "a class that is ignored": ({"ignore_index": 2}, "weighted total"),
    "one loss per row": ({"reduction": "none"}, "row values"),
    "class weights that are trained": ({"weight": torch.ones(C).requires_grad_()}, "row values"),
    "sample weights that are trained": (
        {"sample_weight": torch.ones(N).requires_grad_()},
        "row values",
    ),
}


def rules_called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, object]]:
    """Record rule, logits and kernels of every rule that is called from now on."""
    calls = []

    def record(module, name: str, rule: str, where: str) -> None:
        plain = getattr(module, name)

        def called(*args):
            kernels = args[3] if len(args) == 4 else cpu if rule == "mean NLL" else maths
            calls.append((rule, where, kernels))
            return plain(*args)

        monkeypatch.setattr(module, name, called)

    record(rows, "mean_nll", "mean NLL", "logits")
    record(rows, "weighted_total", "weighted total", "logits")
    record(rows, "row_values", "row values", "logits")
    record(linear_rows, "weighted_total", "weighted total", "in blocks")
    record(linear_rows, "row_values", "row values", "in blocks")
    record(maths, "row_values", "formulas", "logits")
    return calls


def assert_taken(monkeypatch: pytest.MonkeyPatch, function, *args, **kw) -> route.Route:
    """Assert that the call runs the rule that route_of names."""
    expected = route_of(function, *args, **kw)
    calls = rules_called(monkeypatch)
    function(*args, **kw)
    where = "in blocks" if expected.logits == "in blocks" else "logits"
    assert calls == [(expected.rule, where, expected.kernels)]
    return expected


@pytest.mark.parametrize(("given", "rule"), LOGITS.values(), ids=LOGITS)
def test_logits(given: dict, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = assert_taken(monkeypatch, cross_entropy, z(), Y, **given)
    assert (found.rule, found.logits, found.kernels) == (rule, "given", cpu)


@pytest.mark.parametrize(
    ("logits", "target", "rule"),
    [
        (z().detach(), Y, "weighted total"),
        (z(dtype=torch.float64), Y, "weighted total"),
        (z(), torch.full((N, C), 1 / C), "weighted total"),
        (z(), torch.full((N, C), 1 / C).requires_grad_(), "row values"),
        (z()[:0], Y[:0], "row values"),
        (z()[0], Y[0], "weighted total"),
    ],
    ids=["no gradient", "float64", "soft", "soft, differentiable", "no rows", "one sample"],
)
def test_other_logits_and_targets(logits, target, rule, monkeypatch) -> None:
    assert assert_taken(monkeypatch, cross_entropy, logits, target).rule == rule


LAYERS = {
    "few logits": (layer(D), {}, "mean NLL", "kept"),
    "few logits, sum": (layer(D), {"reduction": "sum"}, "weighted total", "kept"),
    "many logits": (layer(D, 9000), {}, "weighted total", "in blocks"),
    "class weights": (layer(D), {"weight": torch.ones(C)}, "weighted total", "in blocks"),
    "one loss per row": (layer(D, 9000), {"reduction": "none"}, "row values", "in blocks"),
    "few classes": (layer(C, 9000), {"reduction": "none"}, "row values", "kept"),
    "no features": (layer(0, 9000), {}, "weighted total", "kept"),
    "trained weights": (
        layer(D),
        {"sample_weight": torch.ones(N).requires_grad_()},
        "row values",
        "kept",
    ),
    "positions": (
        (torch.zeros(N, D), torch.zeros(C, 2, D, requires_grad=True), torch.zeros(N, 2).long()),
        {},
        "weighted total",
        "kept",
    ),
}


@pytest.mark.parametrize(("arguments", "given", "rule", "logits"), LAYERS.values(), ids=LAYERS)
def test_linear_layers(arguments, given, rule, logits, monkeypatch) -> None:
    found = assert_taken(monkeypatch, linear_cross_entropy, *arguments, **given)
    assert (found.rule, found.logits, found.kernels) == (rule, logits, cpu)


@pytest.mark.parametrize("function", [cross_entropy, linear_cross_entropy])
def test_transforms_and_tracers(function) -> None:
    found = []
    arguments = (z().detach(), Y) if function is cross_entropy else layer(D)

    def call(x: Tensor) -> Tensor:
        found.append(route_of(function, x, *arguments[1:]))
        return x.sum()

    torch.func.grad(call)(arguments[0])
    torch.func.jvp(call, (arguments[0],), (arguments[0],))
    with forward_ad.dual_level():
        call(arguments[0])
    assert [(r.rule, r.kernels) for r in found] == [
        ("row values", cpu), ("formulas", maths), ("formulas", maths)
    ]  # fmt: skip
    logits = "given" if function is cross_entropy else "kept"
    assert {r.logits for r in found} == {logits}


def test_under_autocast_the_layer_is_lowered_and_the_route_stays(monkeypatch) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = assert_taken(monkeypatch, linear_cross_entropy, *layer(D, 9000))
        assert route_of(cross_entropy, z(), Y).rule == "weighted total"
    assert found.logits == "in blocks"


def test_a_mistake_is_raised_as_by_the_call() -> None:
    with pytest.raises(RuntimeError, match="label_smoothing"):
        route_of(cross_entropy, z(), Y, label_smoothing=2.0)
    with pytest.raises(IndexError, match="got 7"):
        route_of(linear_cross_entropy, *layer(D, 9000)[:2], torch.full((9000,), 7))


def test_examples_in_docstrings() -> None:
    found = doctest.testmod(route)
    assert found.attempted > 3
    assert found.failed == 0


def test_the_configuration_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    softmax_torch.show_config()
    out = capsys.readouterr().out
    assert f"softmax_torch {softmax_torch.__version__}, torch {torch.__version__}" in out
    assert f"cpu: {backends.kernels(torch.empty(0)).__name__}\n" in out
    assert "\ncuda: " in out
    assert "other devices: softmax_torch.maths\n" in out
