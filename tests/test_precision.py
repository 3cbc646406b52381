"""Errors of our results and of torch's in the same dtype; the truth is torch's in float64.

Distances are in units of eps of the dtype times the largest number of the truth.
"""

import pytest
import torch
import torch.nn.functional as F
from support import OTHER_KERNELS, need_library
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import jacfwd, jacrev

from softmax_torch import cross_entropy, linear_cross_entropy
from softmax_torch.ops import backends

SLACK = {
    # If torch happens to be exact, ours may be off by the roundings of its steps: the argument of
    # exp, exp, a sum, a reciprocal and two products, about an eps each.
    torch.float32: 8.0,
    # Computed in float32 and rounded once, which is half an eps.
    torch.bfloat16: 0.6,
}

N, C, D = 64, 50, 8


def at_target(z: Tensor, y: Tensor, value: float) -> Tensor:
    return z.scatter(1, y.unsqueeze(1), value)


def masked(z: Tensor, y: Tensor) -> Tensor:
    """Return z with a third of the classes at -inf, but not the target."""
    return at_target(torch.where(torch.rand_like(z) < 0.3, -torch.inf, z), y, 0.5)


KINDS = {
    "ordinary": lambda z, y: 3 * z,
    "around 1e4": lambda z, y: z + 1e4,
    "up to 1e4": lambda z, y: 1e4 * z,
    "right and certain": lambda z, y: at_target(z, y, 28.0),
    "wrong and certain": lambda z, y: at_target(z, y, -40.0),
    "masked": masked,
}
SHAPES = [(N, C), (N, 200), (N, 1), (8, C, 4), (4, 200_000)]

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
reductions = pytest.mark.parametrize("reduction", ["mean", "none"])


def results(f, *leaves: Tensor) -> list[Tensor]:
    """Return a loss and its gradients."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    loss = f(*leaves)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]


def distance(found: Tensor, truth: Tensor) -> float:
    """Return the largest difference of finite numbers; assert that the others are not finite."""
    torch.testing.assert_close(found.isfinite(), truth.isfinite())
    finite = truth.isfinite()
    size = truth[finite].abs().max().item()
    apart = (found.double() - truth)[finite].abs().max().item()
    return apart / (torch.finfo(found.dtype).eps * max(size, torch.finfo(found.dtype).tiny))


def assert_no_further_than_torch(ours, torchs, truths) -> None:
    for x, t, truth in zip(ours, torchs, truths, strict=True):
        assert x.dtype == t.dtype
        assert distance(x, truth) <= distance(t, truth) + SLACK[x.dtype]


@pytest.fixture(params=["native", pytest.param("torch", marks=OTHER_KERNELS), "formulas"])
def path(request):
    """Take the route of the native kernels, of torch's kernels, or of the formulas."""
    if request.param == "formulas":
        with forward_ad.dual_level():
            yield
        return
    if request.param == "native":
        need_library()
    with backends.cpu_kernels(request.param):
        yield


@dtypes
@reductions
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_cross_entropy_is_no_further_from_the_truth_than_torch(kind, shape, reduction, dtype, path):
    torch.manual_seed(0)
    y = torch.randint(shape[1], shape[:1] + shape[2:])
    z = kind(torch.randn(shape), y).to(dtype)
    assert_no_further_than_torch(
        results(lambda z: cross_entropy(z, y, reduction=reduction), z),
        results(lambda z: F.cross_entropy(z, y, reduction=reduction), z),
        results(lambda z: F.cross_entropy(z, y, reduction=reduction), z.double()),
    )


OPTIONS = {
    "smoothing": {"label_smoothing": 0.1},
    "class weight": {"weight": torch.linspace(0.1, 2, C)},
    "soft": {},
}


@reductions
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["ordinary", "around 1e4", "wrong and certain"])
def test_options_are_no_further_from_the_truth_than_torch(kind, name, reduction, kernels):
    torch.manual_seed(0)
    options = OPTIONS[name] | {"reduction": reduction}
    y = torch.randint(C, (N,))
    z = KINDS[kind](torch.randn(N, C), y)
    target = torch.randn(N, C).softmax(1) if name == "soft" else y

    def double(x):
        return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

    exact = {k: double(v) for k, v in options.items()}
    assert_no_further_than_torch(
        results(lambda z: cross_entropy(z, target, **options), z),
        results(lambda z: F.cross_entropy(z, target, **options), z),
        results(lambda z: F.cross_entropy(z, double(target), **exact), z.double()),
    )


@dtypes
@reductions
@pytest.mark.parametrize("classes", [1, 4, C, 200_000])
@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_linear_cross_entropy_is_no_further_than_torch(scale, classes, reduction, dtype, kernels):
    torch.manual_seed(0)
    n = 4 if classes > C else N
    x, W, y = torch.randn(n, D), scale * torch.randn(classes, D), torch.randint(classes, (n,))
    b = torch.randn(classes)
    leaves = [t.to(dtype) for t in (x, W, b)]

    def by_torch(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, W, b), y, reduction=reduction)

    def ours(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        return linear_cross_entropy(x, W, y, linear_bias=b, reduction=reduction)

    exact = results(by_torch, *[t.double() for t in leaves])
    assert_no_further_than_torch(results(ours, *leaves), results(by_torch, *leaves), exact)


# Certain predictions: p_y rounds to 1, and its distance from 1 is the gradient.

certainties = pytest.mark.parametrize("certainty", [18.0, 25.0, 40.0, 80.0])


def worst_relative_error(found: Tensor, truth: Tensor) -> float:
    assert (truth != 0).all()
    return ((found.double() - truth) / truth).abs().max().item()


@reductions
@certainties
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_loss_and_gradient_of_certain_predictions_keep_their_digits(
    certainty, classes, reduction, kernels
):
    torch.manual_seed(0)
    y = torch.randint(classes, (N,))
    z = at_target(torch.randn(N, classes), y, certainty)
    ours = results(lambda z: cross_entropy(z, y, reduction=reduction), z)
    others = z.double().softmax(1).scatter(1, y.unsqueeze(1), 0)
    q = others.sum(1, keepdim=True)  # 1 - p_y
    gradient = others.scatter(1, y.unsqueeze(1), -q)
    loss = -torch.log1p(-q).squeeze(1)
    truths = [loss.mean(), gradient / N] if reduction == "mean" else [loss, gradient]
    for found, truth in zip(ours, truths, strict=True):
        assert worst_relative_error(found, truth) < 1e-5


@certainties
@pytest.mark.parametrize("features", [2, 200], ids=["C > D", "C < D"])
def test_gradients_of_a_certain_linear_layer_keep_their_digits(certainty, features, kernels):
    torch.manual_seed(0)
    x, y = torch.zeros(1, features), torch.tensor([3])
    x[0, 0] = 1  # so that the logits are the first column of W, without rounding
    W = torch.randn(10, features)
    W[3, 0] = certainty
    _, dW = results(lambda W: linear_cross_entropy(x, W, y), W)
    others = W[:, 0].double().softmax(0).index_fill(0, y, 0)
    assert worst_relative_error(dW[:, 0], others.index_fill(0, y, -others.sum().item())) < 1e-5


@pytest.mark.parametrize("certainty", [25.0, 60.0, 80.0, 100.0, 1000.0])
@pytest.mark.parametrize("inner", [jacrev, jacfwd])
@pytest.mark.parametrize("outer", [jacrev, jacfwd])
def test_curvature_of_certain_predictions(outer, inner, certainty):
    z, y = torch.tensor([0.0, certainty, 0.5]), torch.tensor(1)
    found = outer(inner(lambda z: cross_entropy(z, y)))(z)
    p = z.double().softmax(0)
    truth = torch.diag(p) - p.outer(p)
    truth[1, 1] = p[1] * (p[0] + p[2])
    size = truth.abs().max().item()
    tiny = torch.finfo(torch.float32).tiny  # p is no normal number beyond a certainty of 87
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-5 * size + tiny)


@pytest.mark.parametrize("inner", [jacrev, jacfwd])
@pytest.mark.parametrize("outer", [jacrev, jacfwd])
@pytest.mark.parametrize("masked", [False, True], ids=["one class", "all others masked"])
def test_a_class_without_rivals_has_no_slope_and_no_curvature(masked, outer, inner):
    z = torch.tensor([[1.0, -torch.inf, -torch.inf]] if masked else [[1.0]])

    def loss(z: Tensor) -> Tensor:
        return cross_entropy(z, torch.tensor([0]))

    for derivative in (inner(loss)(z), outer(inner(loss))(z)):
        torch.testing.assert_close(derivative, torch.zeros_like(derivative))


# Logits that are not finite: the results are not finite where torch's are not.


WHERE = {
    "at the target": lambda z: z[1, :1],
    "at another class": lambda z: z[1, 1:2],
    "at all other classes": lambda z: z[1, 1:],
    "at every class": lambda z: z[1],
}


@reductions
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE.keys())
@pytest.mark.parametrize("shape", [(4, 2), (4, 10), (4, 100), (4, 10, 3)], ids=str)
def test_results_are_not_finite_where_torchs_are_not(shape, where, value, reduction, path):
    torch.manual_seed(0)
    z, y = torch.randn(shape), torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
    where(z).fill_(value)
    ours, torchs = (
        results(lambda z, f=f: f(z, y, reduction=reduction), z)
        for f in (cross_entropy, F.cross_entropy)
    )
    torch.testing.assert_close(ours, torchs, equal_nan=True)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_a_row_that_is_not_finite_leaves_hard_rows_beside_it_alone(classes, value, path):
    torch.manual_seed(0)
    z, y = torch.randn(4, classes), torch.zeros(4, dtype=torch.long)
    z[1, 0] = value
    z[2, 0] = -300
    ours, torchs = (
        results(lambda z, f=f: f(z, y, reduction="none"), z)
        for f in (cross_entropy, F.cross_entropy)
    )
    torch.testing.assert_close(ours, torchs, equal_nan=True)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_an_ignored_row_that_is_not_finite_leaves_hard_rows_alone(value, path):
    torch.manual_seed(0)
    z, y = torch.randn(4, 10), torch.tensor([0, -100, 0, 1])
    z[1] = value
    z[2, 0] = -300
    (loss, gradient), (truth, _) = (
        results(lambda z, f=f: f(z, y), z) for f in (cross_entropy, F.cross_entropy)
    )
    torch.testing.assert_close(loss, truth)
    assert gradient[y != -100].isfinite().all()


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_a_smoothed_loss_of_many_classes_is_no_further_than_torch(smoothing, kernels):
    """The sum over 128,000 classes is added up in parts."""
    torch.manual_seed(0)
    z, y = torch.randn(16, 128_000), torch.randint(128_000, (16,))
    weight = torch.rand(128_000) + 0.5

    def losses(f, dtype: torch.dtype) -> Tensor:
        options = {"weight": weight.to(dtype), "reduction": "none", "label_smoothing": smoothing}
        return f(z.to(dtype), y, **options)

    truth = losses(F.cross_entropy, torch.float64)
    ours, torchs = (losses(f, torch.float32) for f in (cross_entropy, F.cross_entropy))
    error, torchs_error = (((x - truth) / truth).abs().max() for x in (ours, torchs))
    assert error <= 2 * torchs_error
