"""route_of names the route that a call takes; show_config names versions and kernels."""

import doctest

import pytest
import torch
from support import need_library
from torch import Tensor
from torch.autograd import forward_ad

import softmax_torch
from softmax_torch import (
    cross_entropy,
    cross_entropy_outputs,
    linear_cross_entropy,
    linear_cross_entropy_outputs,
    maths,
    route_of,
)
from softmax_torch.loss import route
from softmax_torch.ops import backends, linear_rows, native, rows
from softmax_torch.ops.native import linear as native_linear

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

    def record(module, name: str, rule: str, where: str, kernels_at: int | None) -> None:
        plain = getattr(module, name)

        def called(*args):
            calls.append((rule, where, maths if kernels_at is None else args[kernels_at]))
            return plain(*args)

        monkeypatch.setattr(module, name, called)

    def record_pass(name: str) -> None:
        plain = getattr(native_linear, name)

        def called(*args):
            rule, _, kernels = calls.pop()
            calls.append((rule, "in one pass", native if kernels is native_linear else kernels))
            return plain(*args)

        monkeypatch.setattr(native_linear, name, called)

    record(rows, "mean_nll", "mean NLL", "logits", 2)
    record(rows, "weighted_total", "weighted total", "logits", 3)
    record(rows, "row_values", "row values", "logits", 3)
    record(linear_rows, "mean_nll", "mean NLL", "in blocks", 2)
    record(linear_rows, "weighted_total", "weighted total", "in blocks", 3)
    record(linear_rows, "row_values", "row values", "in blocks", 3)
    record(maths, "row_values", "formulas", "logits", None)
    record_pass("mean_nll")
    record_pass("total_and_gradients")
    return calls


def assert_taken(monkeypatch: pytest.MonkeyPatch, function, *args, **kw) -> route.Route:
    """Assert that the call runs the rule that route_of names."""
    expected = route_of(function, *args, **kw)
    with monkeypatch.context() as patches:
        calls = rules_called(patches)
        function(*args, **kw)
    where = expected.logits if expected.logits in ("in blocks", "in one pass") else "logits"
    assert calls == [(expected.rule, where, expected.kernels)]
    return expected


@pytest.mark.parametrize(("given", "rule"), LOGITS.values(), ids=LOGITS)
def test_logits(given: dict, rule: str, kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    found = assert_taken(monkeypatch, cross_entropy, z(), Y, **given)
    assert (found.rule, found.logits, found.kernels) == (rule, "given", kernels)


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
def test_other_logits_and_targets(logits, target, rule, kernels, monkeypatch) -> None:
    assert assert_taken(monkeypatch, cross_entropy, logits, target).rule == rule


# For torch's kernels, and for native ones.
MEAN = ("mean NLL", "in one pass")
TOTAL = ("weighted total", "in one pass")
LAYERS = {
    "few logits": (layer(D), {}, ("mean NLL", "kept"), MEAN),
    "few logits, sum": (layer(D), {"reduction": "sum"}, ("weighted total", "kept"), TOTAL),
    "many logits": (layer(D, 9000), {}, ("weighted total", "in blocks"), MEAN),
    "class weights": (layer(D), {"weight": torch.ones(C)}, ("weighted total", "in blocks"), TOTAL),
    "more classes than a pass takes": (
        (torch.zeros(9000, D), torch.zeros(65, D, requires_grad=True), torch.zeros(9000).long()),
        {},
        ("weighted total", "in blocks"),
        ("weighted total", "in blocks"),
    ),
    "one loss per row": (
        layer(D, 9000),
        {"reduction": "none"},
        ("row values", "in blocks"),
        ("row values", "in blocks"),
    ),
    "few classes": (
        layer(C, 9000),
        {"reduction": "none"},
        ("row values", "kept"),
        ("row values", "kept"),
    ),
    "no features": (layer(0, 9000), {}, ("weighted total", "kept"), ("weighted total", "kept")),
    "trained weights": (
        layer(D),
        {"sample_weight": torch.ones(N).requires_grad_()},
        ("row values", "kept"),
        ("row values", "kept"),
    ),
    "positions": (
        (torch.zeros(N, D), torch.zeros(C, 2, D, requires_grad=True), torch.zeros(N, 2).long()),
        {},
        ("weighted total", "kept"),
        ("weighted total", "kept"),
    ),
}


@pytest.mark.parametrize(
    ("arguments", "given", "by_torch", "by_native"), LAYERS.values(), ids=LAYERS
)
def test_linear_layers(arguments, given, by_torch, by_native, kernels, monkeypatch) -> None:
    found = assert_taken(monkeypatch, linear_cross_entropy, *arguments, **given)
    expected = by_native if kernels is native else by_torch
    assert (found.rule, found.logits, found.kernels) == (*expected, kernels)


# What a layer has to fulfil for its mean NLL in one pass, each broken by itself.


def trained(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def broken(**changed) -> dict:
    """Return the arguments of a layer that takes the shortcut, with some of them changed."""
    x, W, y = layer(D)
    b = torch.zeros(C, requires_grad=True)
    return {"input": x, "linear_weight": W, "target": y, "linear_bias": b} | changed


SHORT = {
    "with a bias": broken(),
    "without a bias": broken(linear_bias=None),
    "rows with gaps": broken(input=torch.zeros(2 * N, D)[::2]),
    "one row for all": broken(input=torch.zeros(1, D).expand(N, D)),
    "only the input is trained": broken(
        input=torch.zeros(N, D, requires_grad=True),
        linear_weight=torch.zeros(C, D),
        linear_bias=torch.zeros(C),
    ),
    "only the weight is trained": broken(linear_bias=torch.zeros(C)),
    "only the bias is trained": broken(linear_weight=torch.zeros(C, D)),
    "one row": broken(input=torch.zeros(1, D), target=Y[:1]),
    "one feature, with gaps": broken(
        input=torch.zeros(N, 2)[:, ::2], linear_weight=torch.zeros(C, 1, requires_grad=True)
    ),
    "as many classes as a pass takes": broken(
        linear_weight=torch.zeros(64, D, requires_grad=True), linear_bias=None
    ),
    "an index to ignore that is no class": broken(ignore_index=C),
}


@pytest.mark.parametrize("arguments", SHORT.values(), ids=SHORT)
def test_the_mean_nll_of_a_layer_in_one_pass(arguments: dict, monkeypatch) -> None:
    need_library()
    with backends.cpu_kernels("native"):
        found = assert_taken(monkeypatch, linear_cross_entropy, **arguments)
    assert (found.rule, found.logits, found.kernels) == (*MEAN, native)
    with backends.cpu_kernels("torch"):
        assert route_of(linear_cross_entropy, **arguments).logits == "kept"


DOUBLE = {
    name: trained(value.double()) for name, value in broken().items() if value.is_floating_point()
}
NOT_SHORT = {
    "a sum": (broken(reduction="sum"), TOTAL),
    "smoothing": (broken(label_smoothing=0.1), TOTAL),
    "z-loss": (broken(z_loss=0.1), TOTAL),
    "class weights": (broken(weight=torch.ones(C)), TOTAL),
    "sample weights": (broken(sample_weight=torch.ones(N)), TOTAL),
    "class probabilities": (broken(target=torch.full((N, C), 1 / C)), TOTAL),
    "indices of 32 bits": (broken(target=Y.int()), TOTAL),
    "indices with gaps": (broken(target=Y.repeat_interleave(2)[::2]), TOTAL),
    "float64": (broken(**DOUBLE), TOTAL),
    "samples of two dimensions": (
        broken(input=torch.zeros(N, 2, D), target=torch.zeros(N, 2).long()),
        TOTAL,
    ),
    "columns with gaps": (broken(input=torch.zeros(N, 2 * D)[:, ::2]), TOTAL),
    "a negative bit": (broken(input=torch._neg_view(torch.zeros(N, D))), TOTAL),
    "a weight with gaps": (broken(linear_weight=trained(torch.zeros(C, 2 * D)[:, ::2])), TOTAL),
    "a weight with a negative bit": (
        broken(linear_weight=trained(torch._neg_view(torch.zeros(C, D)))),
        TOTAL,
    ),
    "a bias with gaps": (broken(linear_bias=torch.zeros(2 * C)[::2]), TOTAL),
    "a bias with a negative bit": (broken(linear_bias=torch._neg_view(torch.zeros(C))), TOTAL),
    "a class that is ignored": (broken(ignore_index=2), TOTAL),
    "nothing is trained": (
        broken(linear_weight=torch.zeros(C, D), linear_bias=torch.zeros(C)),
        TOTAL,
    ),
    "no rows": (broken(input=torch.zeros(0, D), target=Y[:0]), ("row values", "kept")),
    "one sample": (broken(input=torch.zeros(D), target=Y[0]), TOTAL),
}


@pytest.mark.parametrize(("arguments", "expected"), NOT_SHORT.values(), ids=NOT_SHORT)
def test_no_shortcut_in_one_pass(arguments: dict, expected, monkeypatch) -> None:
    """The weighted total takes all that the shortcut leaves."""
    need_library()
    with backends.cpu_kernels("native"):
        found = assert_taken(monkeypatch, linear_cross_entropy, **arguments)
    assert (found.rule, found.logits, found.kernels) == (*expected, native)


WRONG = {
    "a weight in double": broken(linear_weight=DOUBLE["linear_weight"]),
    "a weight without features": broken(linear_weight=torch.zeros(C)),
    "a weight of other features": broken(linear_weight=torch.zeros(C, D + 1, requires_grad=True)),
    "a bias in double": broken(linear_bias=torch.zeros(C).double()),
    "a bias of other classes": broken(linear_bias=torch.zeros(C + 1)),
    "a target of other rows": broken(target=Y[:-1]),
    "a target of two dimensions": broken(target=Y.unsqueeze(1)),
    "a class out of range": broken(target=Y + 1),
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_a_mistake_is_named_with_both_kernels(arguments: dict) -> None:
    """The shortcut in one pass leaves it to the general route."""
    need_library()
    errors = []
    for choice in ("torch", "native"):
        with backends.cpu_kernels(choice), pytest.raises(Exception) as raised:
            linear_cross_entropy(**arguments)
        errors.append((raised.type, str(raised.value)))
    assert errors[0] == errors[1]
    assert "expected" in errors[0][1]


def test_no_shortcut_without_gradients_and_under_autocast() -> None:
    need_library()
    with backends.cpu_kernels("native"):
        with torch.no_grad():
            found = route_of(linear_cross_entropy, **broken())
            assert (found.rule, found.logits) == TOTAL
        with torch.autocast("cpu", torch.bfloat16):  # whose layers have no pass
            found = route_of(linear_cross_entropy, **broken())
        assert (found.rule, found.logits) == ("weighted total", "in blocks")


@pytest.mark.parametrize("function", [cross_entropy, linear_cross_entropy])
def test_transforms_and_tracers(function, kernels) -> None:
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
        ("row values", kernels), ("formulas", maths), ("formulas", maths)
    ]  # fmt: skip
    logits = "given" if function is cross_entropy else "kept"
    assert {r.logits for r in found} == {logits}


def test_under_autocast_the_layer_is_lowered_and_the_route_stays(kernels, monkeypatch) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = assert_taken(monkeypatch, linear_cross_entropy, *layer(D, 9000))
        assert route_of(cross_entropy, z(), Y).rule == "weighted total"
    assert found.logits == "in blocks"


def test_a_mistake_is_raised_as_by_the_call() -> None:
    with pytest.raises(RuntimeError, match="label_smoothing"):
        route_of(cross_entropy, z(), Y, label_smoothing=2.0)
    with pytest.raises(IndexError, match="got 7"):
        route_of(linear_cross_entropy, *layer(D)[:2], torch.full((N,), 7), reduction="sum")


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


def test_transformed_logits() -> None:
    kernels = f"{backends.kernels(Y).__name__} on transformed logits"
    for options in ({"softcap": 2.0}, {"logit_scale": 0.5}, {"softcap": 2, "logit_scale": 0.5}):
        found = route_of(cross_entropy, z(), Y, **options)
        assert (found.rule, found.kernels.__name__) == ("weighted total", kernels)
    scale = torch.ones((), requires_grad=True)
    for options in ({"logit_scale": scale}, {"softcap": 2.0, "logit_scale": scale}):
        found = route_of(cross_entropy, z(), Y, **options)
        assert found.rule == "row values"
        assert "scale of the logits needs a gradient" in str(found)


def test_a_layer_whose_logits_are_scaled_is_the_layer_of_a_scaled_input() -> None:
    x, W, y = layer(D, rows=20_000)
    found = route_of(linear_cross_entropy, x, W, y, logit_scale=0.5, reduction="sum")
    assert found == route_of(linear_cross_entropy, x, W, y, reduction="sum")
    capped = route_of(linear_cross_entropy, x, W, y, softcap=2.0)
    assert (capped.rule, capped.logits) == ("weighted total", "in blocks")
    scale = torch.ones((), requires_grad=True)
    kept = route_of(linear_cross_entropy, x, W, y, softcap=2.0, logit_scale=scale)
    assert (kept.rule, kept.logits) == ("row values", "kept")


def test_outputs() -> None:
    """A layer whose logits are no larger than its input is computed in one pass with them."""
    need_library()
    x, W, y = layer(2 * C, rows=20_000)
    wide = torch.zeros(30, 2 * C, requires_grad=True)
    for names, detach, rule in (
        (("argmax",), False, "weighted total"),
        (("lse",), False, "row values"),
        (("lse",), True, "weighted total"),
    ):
        given = {"outputs": names, "detach": detach}
        assert route_of(cross_entropy_outputs, z(), Y, **given).rule == rule
        found = route_of(linear_cross_entropy_outputs, x, W, y, **given)
        assert found.rule == rule
        assert (found.logits == "in one pass") == (rule == "weighted total")
        assert route_of(linear_cross_entropy_outputs, x, wide, y, **given).logits == "in blocks"


@pytest.mark.parametrize("names", [("argmax", "entropy"), ("log_prob", "argmax")], ids=str)
def test_outputs_in_one_pass(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    need_library()
    torch.manual_seed(0)
    x, W = torch.randn(20_000, 2 * C), torch.randn(C, 2 * C, requires_grad=True)
    y = torch.randint(C, (len(x),))
    calls = rules_called(monkeypatch)
    found = linear_cross_entropy_outputs(x, W, y, outputs=names, detach=True, z_loss=0.1)
    assert calls == [("weighted total", "in one pass", native)]
    truth = cross_entropy_outputs(x @ W.t(), y, outputs=names, detach=True, z_loss=0.1)
    torch.testing.assert_close(found, truth)
