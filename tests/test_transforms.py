"""torch.func transforms of the loss equal those of the loss written in plain torch."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import (
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

from softmax_torch import SoftmaxRegression, cross_entropy, linear_cross_entropy

B, N, C, D = 2, 5, 4, 3


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def positive(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64) + 0.5


def assert_same(ours, truth) -> None:
    """Assert equality with a truth that is not zero: a lost tangent is a silent zero."""
    for t in truth if isinstance(truth, (tuple, list)) else (truth,):
        assert t.abs().max() > 1e-4, "a truth of zero proves nothing"
    torch.testing.assert_close(ours, truth)


def reference(
    z,
    target,
    sample_weight=None,
    z_loss=0.0,
    reduction="mean",
    softcap=None,
    logit_scale=1.0,
    **options,
) -> Tensor:
    """Return cross_entropy by torch and, for our own options, plain torch; no weighted means."""
    if softcap is not None:
        z = softcap * (z / softcap).tanh()
    z = z * logit_scale
    if sample_weight is None and z_loss == 0:
        return F.cross_entropy(z, target, reduction=reduction, **options)
    loss = F.cross_entropy(z, target, reduction="none", **options)
    square = z_loss * z.logsumexp(1) ** 2
    if not target.is_floating_point():
        square = torch.where(target == options.get("ignore_index", -100), 0, square)
    loss = (loss + square) * (1 if sample_weight is None else sample_weight)
    return {"none": lambda: loss, "sum": loss.sum, "mean": loss.mean}[reduction]()


def every(**options):
    """Return every option that ``reference`` has."""
    return {"label_smoothing": 0.2, "z_loss": 0.1, "weight": positive(C), **options}


def cases() -> dict:
    """Return by name: the shape of the logits, target, and options."""
    torch.manual_seed(0)
    y, y_map, t = torch.randint(C, (N,)), torch.randint(C, (N, 2)), random(N, C).softmax(1)
    ignored = y.clone()
    ignored[1] = -100
    return {
        "mean": ((N, C), y, {}),
        "none": ((N, C), y, {"reduction": "none"}),
        "ignored": ((N, C), ignored, {"label_smoothing": 0.2, "weight": positive(C)}),
        "sum, all": ((N, C), ignored, every(reduction="sum", sample_weight=positive(N))),
        "none, all": ((N, C), ignored, every(reduction="none", sample_weight=positive(N))),
        "softcap, scale": ((N, C), y, {"softcap": 1.5, "logit_scale": 0.7}),
        "maps": ((N, C, 2), y_map, {}),
        "maps, sum, all": ((N, C, 2), y_map, every(reduction="sum")),
        "soft": ((N, C), t, {}),
        "soft, none, all": ((N, C), t, every(reduction="none")),
    }


TRANSFORMS = {
    "grad": lambda f, x: grad(lambda x: f(x).sum())(x),
    "grad_and_value": lambda f, x: grad_and_value(lambda x: f(x).sum())(x),
    "vjp": lambda f, x: vjp(f, x)[1](along(f(x)))[0],
    "jvp": lambda f, x: jvp(f, (x,), (along(x),)),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(f)(x),
    "jacrev of jacrev": lambda f, x: jacrev(jacrev(f))(x),
    "jacfwd of jacfwd": lambda f, x: jacfwd(jacfwd(f))(x),
    "jacrev of jacfwd": lambda f, x: jacrev(jacfwd(f))(x),
    "jvp of jvp": lambda f, x: jvp(lambda x: jvp(f, (x,), (along(x),))[1], (x,), (along(x),))[1],
    "vmap": lambda f, x: vmap(f)(batch(x)),
    "vmap of grad": lambda f, x: vmap(grad(lambda x: f(x).sum()))(batch(x)),
    "vmap of jvp": lambda f, x: vmap(lambda x: jvp(f, (x,), (along(x),))[1])(batch(x)),
    "vmap of hessian": lambda f, x: vmap(hessian(f))(batch(x)),
    "vmap of vmap": lambda f, x: vmap(vmap(f))(batch(batch(x))),
    "grad of vmap": lambda f, x: grad(lambda x: (vmap(f)(x) ** 2).sum())(batch(x)),
    "jacfwd of vmap": lambda f, x: jacfwd(vmap(f))(batch(x)),
    "third derivative": lambda f, x: jacfwd(hessian(lambda s: f(x * s).sum()))(along(x[0])),
}


def along(x: Tensor) -> Tensor:
    """Return a fixed direction of the shape of x."""
    return torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view(x.shape)


def batch(x: Tensor) -> Tensor:
    return torch.stack([x, 0.5 * x + 1])


transforms = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
losses = pytest.mark.parametrize("case", cases().values(), ids=cases().keys())


@transforms
@losses
def test_of_cross_entropy(case, transform):
    shape, target, options = case
    torch.manual_seed(1)
    z = random(*shape)
    assert_same(
        transform(lambda z: cross_entropy(z, target, **options), z),
        transform(lambda z: reference(z, target, **options), z),
    )


@transforms
@pytest.mark.parametrize(
    "name", ["mean", "sum, all", "none, all", "softcap, scale", "soft, none, all"]
)
@pytest.mark.parametrize("features", [D, C + 1], ids=["C > D", "C < D"])
def test_of_linear_cross_entropy_in_its_weight(name, features, transform):
    _, target, options = cases()[name]
    torch.manual_seed(1)
    x, W, b = random(N, features), random(C, features), random(C)
    assert_same(
        transform(lambda W: linear_cross_entropy(x, W, target, linear_bias=b, **options), W),
        transform(lambda W: reference(F.linear(x, W, b), target, **options), W),
    )


def test_jacobians_in_every_differentiable_argument():
    torch.manual_seed(0)
    z, t, w, s = random(N, C), random(N, C).softmax(1), positive(C), positive(N)

    def of(loss):
        return lambda z, t, w, s: loss(
            z, t, weight=w, sample_weight=s, reduction="none", label_smoothing=0.1, z_loss=0.1
        )

    everything = (0, 1, 2, 3)
    for transform in (jacrev, jacfwd):
        ours = transform(of(cross_entropy), everything)(z, t, w, s)
        assert_same(ours, transform(of(reference), everything)(z, t, w, s))


def batched(tensor: Tensor, dim: int | None) -> Tensor:
    """Return B different tensors stacked along dim, or the tensor itself if dim is None."""
    return tensor if dim is None else torch.stack([tensor.roll(b, 0) for b in range(B)], dim)


def unbatched(tensor: Tensor, dim: int | None, b: int) -> Tensor:
    return tensor if dim is None else tensor.select(dim, b)


IN_DIMS = [
    dims
    for dims in itertools.product((None, 0), (None, 1), (None, 0), (None, 1))
    if dims != (None, None, None, None)
]


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("positions", [(), (2,)], ids=["rows", "maps"])
@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap_over_any_of_the_arguments(in_dims, positions, soft, kernels):
    torch.manual_seed(0)
    z, w, s = random(N, C, *positions), positive(C), positive(N, *positions)
    target = z.softmax(1) if soft else torch.randint(C, (N, *positions))
    arguments = [batched(x, d) for x, d in zip((z, target, w, s), in_dims, strict=True)]

    def of(loss):
        return lambda z, target, w, s: loss(
            z, target, weight=w, sample_weight=s, reduction="none", label_smoothing=0.1, z_loss=0.1
        )

    ours = vmap(of(cross_entropy), in_dims)(*arguments)
    truth = [
        of(reference)(*[unbatched(x, d, b) for x, d in zip(arguments, in_dims, strict=True)])
        for b in range(B)
    ]
    assert_same(ours, torch.stack(truth))


def test_gradients_of_each_sample(kernels):
    torch.manual_seed(0)
    x, W, b, y = random(N, D), random(C, D), random(C), torch.randint(C, (N,))

    def loss(W, b, x, y):
        return linear_cross_entropy(x, W, y, linear_bias=b)

    dW, db = vmap(grad(loss, (0, 1)), (None, None, 0, 0))(W, b, x, y)
    residual = F.linear(x, W, b).softmax(1) - F.one_hot(y, C)
    assert_same((dW, db), (residual.unsqueeze(2) * x.unsqueeze(1), residual))


class Loss(torch.nn.Module):
    """A model whose output is its loss, for functional_call."""

    def __init__(self, model: SoftmaxRegression) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.model.loss(x, y)


@pytest.mark.parametrize("shared", [True, False], ids=["shared data", "own data"])
@pytest.mark.parametrize("features", [D, C + 1], ids=["C > D", "C < D"])
def test_each_model_of_an_ensemble_gets_the_gradient_it_gets_alone(features, shared, kernels):
    torch.manual_seed(0)
    ensemble = [Loss(SoftmaxRegression(features, C, dtype=torch.float64)) for _ in range(3)]
    parameters, buffers = stack_module_state(ensemble)
    x, y = random(3, N, features), torch.randint(C, (3, N))
    if shared:
        x, y = x[0], y[0]

    def loss(parameters, x, y):
        return functional_call(ensemble[0], (parameters, buffers), (x, y))

    in_dims = (0, None, None) if shared else (0, 0, 0)
    found = vmap(grad(loss), in_dims)(parameters, x, y)
    for m, alone in enumerate(ensemble):
        linear = alone.model.linear
        x_m, y_m = (x, y) if shared else (x[m], y[m])
        F.cross_entropy(linear(x_m), y_m).backward()
        assert_same(found["model.linear.weight"][m], linear.weight.grad)
        assert_same(found["model.linear.bias"][m], linear.bias.grad)
