"""Derivatives of every order, in both modes, in every argument, against finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp

from softmax_torch import cross_entropy, linear_cross_entropy, maths
from softmax_torch.ops import budgets

C, D = 4, 3
SHAPES = [(C,), (3, C), (2, C, 2)]
OPTIONS = {
    "plain": {},
    "sum, weight": {"reduction": "sum", "weight": True},
    "smoothing, sample weight": {"label_smoothing": 0.2, "sample_weight": True},
    "ignored, z-loss": {"ignored": True, "z_loss": 0.1},
    "none, all": {
        "reduction": "none",
        "ignored": True,
        "weight": True,
        "sample_weight": True,
        "label_smoothing": 0.2,
        "z_loss": 0.1,
    },
    "mean, all": {
        "ignored": True,
        "weight": True,
        "sample_weight": True,
        "label_smoothing": 0.2,
        "z_loss": 0.1,
    },
    "softcap": {"softcap": 1.5},
    "scale": {"logit_scale": True, "ignored": True},
    "softcap, scale, normalizer, mean": {
        "softcap": 1.5,
        "logit_scale": True,
        "normalizer": True,
        "weight": True,
        "label_smoothing": 0.2,
        "z_loss": 0.1,
    },
    "softcap, none": {"softcap": 1.5, "logit_scale": 0.7, "reduction": "none"},
    "soft": {"soft": True},
    "soft, softcap": {"soft": True, "softcap": 1.5, "z_loss": 0.1},
    "soft, none, z-loss": {"soft": True, "reduction": "none", "z_loss": 0.1},
    "soft, mean, all": {
        "soft": True,
        "weight": True,
        "sample_weight": True,
        "label_smoothing": 0.2,
        "z_loss": 0.1,
    },
}
LINEAR_SHAPES = [((D,), C), ((3, D), C), ((2, 2, D), 2)]  # more classes than features, and fewer

options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def positive(*shape: int) -> Tensor:
    return (torch.rand(shape, dtype=torch.float64) + 0.5).requires_grad_()


def target_and_options(
    rows: tuple[int, ...],
    probabilities: tuple[int, ...],
    classes: int,
    soft: bool = False,
    ignored: bool = False,
    weight: bool = False,
    sample_weight: bool = False,
    **rest,
):
    """Return a target, the differentiable options, and the options that are numbers."""
    if soft:
        target = positive(*probabilities)
    else:
        target = torch.randint(classes, rows)
        if ignored:
            rest["ignore_index"] = 0
            target = target.clamp(min=1)
            if target.dim() > 0:
                target[0] = 0
    tensors = {}
    if weight:
        tensors["weight"] = positive(classes)
    if sample_weight:
        tensors["sample_weight"] = positive(*rows)
    for name in ("logit_scale", "normalizer"):
        if rest.get(name) is True:
            tensors[name] = positive()
            del rest[name]
    return target, tensors, rest


def logits_case(shape: tuple[int, ...], everything: bool, options: dict):
    """Return a loss as a function of its differentiable tensors, and those tensors."""
    torch.manual_seed(0)
    rows = () if len(shape) == 1 else (shape[0], *shape[2:])
    target, tensors, numbers = target_and_options(rows, shape, C, **options)
    return _case(
        lambda z, target, **kw: cross_entropy(z, target, **kw),
        {"z": leaf(*shape)},
        target,
        tensors,
        numbers,
        everything,
    )


def linear_case(shape: tuple[int, ...], classes: int, everything: bool, options: dict):
    """Return ``logits_case`` of linear_cross_entropy."""
    torch.manual_seed(0)
    rows = shape[:-1]
    target, tensors, numbers = target_and_options(rows, (*rows, classes), classes, **options)
    return _case(
        lambda x, W, b, target, **kw: linear_cross_entropy(x, W, target, linear_bias=b, **kw),
        {"x": leaf(*shape), "W": leaf(classes, shape[-1]), "b": leaf(classes)},
        target,
        tensors,
        numbers,
        everything,
    )


def _case(loss, arguments, target, tensors, numbers, everything):
    others = {**tensors, "target": target}
    moving = dict(arguments)
    if everything:
        moving |= {name: t for name, t in others.items() if t.is_floating_point()}
    fixed = {name: t.detach() for name, t in others.items() if name not in moving}
    names = list(moving)

    def f(*values: Tensor) -> Tensor:
        return loss(**dict(zip(names, values, strict=True)), **fixed, **numbers)

    return f, tuple(moving.values())


def check_first_and_second(f, inputs) -> None:
    for fast_mode in (False, True):
        assert gradcheck(
            f,
            inputs,
            fast_mode=fast_mode,
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
        )
    assert gradgradcheck(f, inputs, check_batched_grad=True, check_fwd_over_rev=True)


def derivative_cases(shapes: list[tuple]) -> list:
    """Return every shape with all options, each in all arguments and in the logits or layer alone.

    Where there is nothing else to differentiate in, the two are one. Quick are those in all
    arguments, of one shape with all options, and of the other shapes with many at once.
    """
    cases = []
    for i, shape in enumerate(shapes):
        for name, options in OPTIONS.items():
            more = any(value is True for key, value in options.items() if key != "ignored")
            for everything in (False, True) if more else (False,):
                most = everything or not more  # in all arguments, the logits or layer among them
                quick = most and i == 1 and (name == "plain" or name.endswith("all"))
                label = f"{shape}-{name}{'-everything' if everything else ''}"
                marks = [] if quick else pytest.mark.slow
                cases.append(pytest.param(shape, options, everything, id=label, marks=marks))
    return cases


@pytest.mark.parametrize(("shape", "options", "everything"), derivative_cases(SHAPES))
def test_cross_entropy_against_finite_differences(shape, options, everything):
    check_first_and_second(*logits_case(shape, everything, options))


@pytest.mark.parametrize(("shape", "options", "everything"), derivative_cases(LINEAR_SHAPES))
def test_linear_cross_entropy_against_finite_differences(shape, options, everything):
    check_first_and_second(*linear_case(*shape, everything, options))


def nth_derivatives(loss, z: Tensor, order: int) -> list[Tensor]:
    """Return the first ``order`` reverse-mode derivatives of loss in z, along fixed directions."""
    directions = torch.Generator().manual_seed(1)
    value, found = loss(z), []
    for _ in range(order):
        (derivative,) = torch.autograd.grad(value, z, create_graph=True)
        found.append(derivative)
        value = (derivative * torch.randn(z.shape, generator=directions, dtype=z.dtype)).sum()
    return found


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_reverse_derivatives_up_to_the_fourth_are_those_of_torch(reduction, label_smoothing):
    torch.manual_seed(0)
    z, y = leaf(3, C), torch.tensor([0, 3, 1])
    kw = {"reduction": reduction, "label_smoothing": label_smoothing}
    ours = nth_derivatives(lambda z: cross_entropy(z, y, **kw).sum(), z, 4)
    truth = nth_derivatives(lambda z: F.cross_entropy(z, y, **kw).sum(), z, 4)
    assert truth[-1].abs().max() > 1e-3
    torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("classes", [C, 2])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_third_derivative_of_the_linear_layer_is_that_of_torch(classes, reduction):
    torch.manual_seed(0)
    x, W, y = leaf(5, D).detach(), leaf(classes, D), torch.randint(classes, (5,))
    ours = nth_derivatives(lambda W: linear_cross_entropy(x, W, y, reduction=reduction).sum(), W, 3)
    truth = nth_derivatives(
        lambda W: F.cross_entropy(x @ W.t(), y, reduction=reduction).sum(), W, 3
    )
    assert truth[-1].abs().max() > 1e-3
    torch.testing.assert_close(ours, truth)


@options
def test_forward_over_reverse_equals_reverse_over_reverse(options):
    f, (z,) = logits_case((3, C), everything=False, options=options)
    v = torch.randn_like(z)
    _, hvp = jvp(grad(lambda z: f(z).sum()), (z.detach(),), (v,))
    (g,) = torch.autograd.grad(f(z).sum(), z, create_graph=True)
    (truth,) = torch.autograd.grad((g * v).sum(), z)
    assert truth.abs().max() > 1e-3
    torch.testing.assert_close(hvp, truth)


# Callers may reuse a graph and change the gradients that they get.


def fused_cases():
    """Return a loss and its leaves for every rule that forms gradients in the forward pass."""
    return {
        "logits": lambda: logits_case((3, C), False, {}),
        "logits, positions": lambda: logits_case((2, C, 2), False, {"label_smoothing": 0.2}),
        "logits, none": lambda: logits_case((3, C), False, {"reduction": "none"}),
        "float32 logits": plain_float32_case,
        "float32 layer": lambda: plain_float32_case(layer=True),
        "linear, many classes": lambda: linear_case((3, D), 5, False, {"z_loss": 0.1}),
        "linear, few classes": lambda: linear_case((3, D), 2, False, {}),
        "linear, none": lambda: linear_case((3, D), 5, False, {"reduction": "none"}),
    }


def plain_float32_case(layer: bool = False):
    torch.manual_seed(0)
    y = torch.tensor([0, 3, 1])
    if layer:
        leaves = tuple(torch.randn(size, requires_grad=True) for size in ((3, D), (C, D), (C,)))
        return lambda x, W, b: linear_cross_entropy(x, W, y, linear_bias=b), leaves
    return lambda z: cross_entropy(z, y), (torch.randn(3, C, requires_grad=True),)


@pytest.fixture(params=fused_cases().values(), ids=fused_cases().keys())
def fused(request, kernels):
    f, leaves = request.param()
    return (lambda: f(*leaves).sum()), leaves


def clones(tensors) -> list[Tensor]:
    return [t.clone() for t in tensors]


def test_a_retained_graph_gives_the_gradient_again_whatever_the_scale(fused):
    loss, leaves = fused
    value = loss()
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    kept = clones(first)
    for scale in (3.0, 1.0, -0.5):
        again = torch.autograd.grad(value, leaves, torch.tensor(scale), retain_graph=True)
        torch.testing.assert_close(list(again), [scale * g for g in kept])
    torch.testing.assert_close(list(first), kept, rtol=0, atol=0)


def test_a_changed_grad_does_not_change_later_backward_passes(fused):
    loss, leaves = fused
    value = loss()
    value.backward(retain_graph=True)
    truth = clones(t.grad for t in leaves)
    for t in leaves:
        t.grad.fill_(torch.nan)
        t.grad = None
    value.backward()
    torch.testing.assert_close([t.grad for t in leaves], truth)


def test_backward_twice_accumulates(fused):
    loss, leaves = fused
    value = loss()
    value.backward(retain_graph=True)
    truth = [2 * t.grad for t in leaves]
    value.backward()
    torch.testing.assert_close([t.grad for t in leaves], truth)


def test_a_second_backward_of_a_freed_graph_is_refused(fused):
    loss, _ = fused
    value = loss()
    value.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        value.backward()


def test_a_differentiable_backward_after_a_plain_one(fused):
    loss, leaves = fused
    value = loss()
    plain = torch.autograd.grad(value, leaves, retain_graph=True)
    differentiable = torch.autograd.grad(value, leaves, create_graph=True)
    torch.testing.assert_close(list(differentiable), list(plain))
    assert all(g.requires_grad for g in differentiable)
    seconds = torch.autograd.grad(sum((g * g).sum() for g in differentiable), leaves)
    assert all(second.abs().max() > 1e-4 for second in seconds)


@pytest.mark.parametrize("function", ["cross_entropy", "linear_cross_entropy"])
def test_gradients_of_micro_batches_add_up_to_that_of_the_batch(function, kernels):
    torch.manual_seed(0)
    x, W, y = leaf(8, D).detach(), leaf(C, D), torch.randint(C, (8,))

    def loss(rows: slice) -> Tensor:
        if function == "cross_entropy":
            return cross_entropy(F.linear(x[rows], W), y[rows])
        return linear_cross_entropy(x[rows], W, y[rows])

    (truth,) = torch.autograd.grad(loss(slice(None)), W)
    for n in range(0, 8, 2):
        (loss(slice(n, n + 2)) / 4).backward()
    torch.testing.assert_close(W.grad, truth)


@pytest.mark.parametrize("classes", [C, 2])
@pytest.mark.parametrize("reduction", ["mean", pytest.param("none", marks=pytest.mark.slow)])
def test_derivatives_in_blocks_against_finite_differences(classes, reduction, monkeypatch):
    monkeypatch.setattr(budgets, "logits_budget", lambda x: 2 * classes * x.element_size())
    options = {"reduction": reduction, "label_smoothing": 0.2, "z_loss": 0.1, "sample_weight": True}
    check_first_and_second(*linear_case((5, D), classes, False, options))


@pytest.mark.parametrize("rivals", [0.0, -torch.inf], ids=["logits", "masked rivals"])
def test_the_formula_of_other_devices_is_that_of_a_cpu(rivals, monkeypatch):
    """They sum the logit of the target with a mask, where a CPU gathers it."""
    z = torch.randn(5, 4, 3, dtype=torch.float64)
    y = torch.randint(4, (5, 3))
    z[0] = torch.where(torch.arange(4).unsqueeze(1) == y[0], z[0], rivals)
    tangent = torch.randn_like(z)

    def nll(z: Tensor) -> Tensor:
        values = maths.row_values(z, maths.Target(y)).nll
        return (values * torch.arange(1.0, 16).view(5, 3)).sum()

    found = []
    for devices in (("cpu",), ()):
        monkeypatch.setattr(maths, "GATHERING", devices)
        found.append([nll(z), *jvp(grad(nll), (z,), (tangent,)), *jvp(nll, (z,), (tangent,))])
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)
