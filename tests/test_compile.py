"""torch.compile and torch.export see one whole graph and give the numbers of eager mode."""

import shutil

import pytest
import torch
from torch import Tensor, nn

from softmax_torch import (
    CrossEntropyLoss,
    SoftmaxRegression,
    cross_entropy,
    linear_cross_entropy,
    linear_cross_entropy_outputs,
)
from softmax_torch.ops import backends

N, C, D = 6, 5, 3

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def cases() -> dict:
    """Return by name: target and options for N rows."""
    torch.manual_seed(0)
    y, t = torch.randint(C, (N,)), torch.randn(N, C).softmax(1)
    ignored = y.clone()
    ignored[1] = -100
    everything = {
        "label_smoothing": 0.2,
        "z_loss": 0.1,
        "weight": torch.rand(C) + 0.5,
        "sample_weight": torch.rand(N) + 0.5,
    }
    return {
        "mean": (y, {}),
        "sum": (y, {"reduction": "sum"}),
        "none": (y, {"reduction": "none"}),
        "ignored": (ignored, {}),
        "ignored by a class": (y, {"ignore_index": int(y[0])}),
        "indices, all": (ignored, everything),
        "softcap, scale, normalizer": (
            ignored,
            {"softcap": 1.5, "logit_scale": torch.tensor(0.7), "normalizer": 7.0},
        ),
        "mask": (y, {"sample_weight": torch.arange(N) != 2}),
        "soft": (t, {}),
        "soft, all": (t, everything | {"softcap": 1.5, "logit_scale": 0.7}),
    }


QUICK = ["mean", "none", "indices, all", "soft, all"]
"""Cases with every option among them. The others are slow tests: a compilation takes a second."""

every_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, case in cases().items()
    ],
)
dynamic = pytest.mark.parametrize(
    "dynamic", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["static", "dynamic"]
)


def compiled(f, backend: str = "aot_eager", **kw):
    return torch.compile(f, fullgraph=True, backend=backend, **kw)


def loss_and_gradients(f, *leaves: Tensor) -> list[Tensor]:
    leaves = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    loss = f(*leaves)
    directions = torch.linspace(1, 2, loss.numel()).view_as(loss)
    return [loss, *torch.autograd.grad((loss * directions).sum(), leaves)]


def assert_compiles(f, *leaves: Tensor, **kw) -> None:
    """Assert that the compiled f and its backward equal the uncompiled ones."""
    ours, truth = (loss_and_gradients(g, *leaves) for g in (compiled(f, **kw), f))
    torch.testing.assert_close(ours, truth)


@dynamic
@every_case
def test_cross_entropy(case, dynamic):
    target, options = case
    assert_compiles(
        lambda z: cross_entropy(z, target, **options), torch.randn(N, C), dynamic=dynamic
    )


@dynamic
@every_case
def test_linear_cross_entropy(case, dynamic):
    target, options = case

    def f(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        return linear_cross_entropy(x, W, target, linear_bias=b, **options)

    leaves = torch.randn(N, D), torch.randn(C, D), torch.randn(C)
    assert_compiles(f, *leaves, dynamic=dynamic)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(C,), (2, C, 3), (2, C, 2, 2)], ids=str)
def test_other_shapes_of_logits(shape):
    y = torch.randint(C, shape[:1] + shape[2:] if len(shape) > 1 else ())
    assert_compiles(lambda z: cross_entropy(z, y), torch.randn(shape))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(dtype):
    y = torch.randint(C, (N,))
    assert_compiles(lambda z: cross_entropy(z, y), torch.randn(N, C, dtype=dtype))


def test_under_autocast():
    y = torch.randint(C, (N,))

    def f(x: Tensor, W: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return linear_cross_entropy(x, W, y)

    assert_compiles(f, torch.randn(N, D), torch.randn(C, D))


@needs_compiler
@pytest.mark.slow
def test_cross_entropy_by_inductor():
    target, options = cases()["indices, all"]
    z = torch.randn(N, C)
    assert_compiles(lambda z: cross_entropy(z, target, **options), z, backend="inductor")


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_one_dynamic_graph_serves_every_size(soft):
    graphs = []

    def count_and_run(graph: torch.fx.GraphModule, _) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    f = torch.compile(cross_entropy, fullgraph=True, dynamic=True, backend=count_and_run)
    for n, c in [(6, 5), (3, 7), (50, 12), (2, 3)]:
        z = torch.randn(n, c, requires_grad=True)
        target = torch.randn(n, c).softmax(1) if soft else torch.randint(c, (n,))
        ours, truth = f(z, target), cross_entropy(z, target)
        torch.testing.assert_close(ours, truth)
        torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(truth, z))
    assert len(graphs) == 1


@pytest.mark.slow
def test_a_marked_batch_size_may_vary():
    f = compiled(linear_cross_entropy)
    W = torch.randn(C, D)
    for n in (6, 3, 11):
        x, y = torch.randn(n, D), torch.randint(C, (n,))
        torch._dynamo.mark_dynamic(x, 0)  # an error if the graph is specialized to one size
        torch._dynamo.mark_dynamic(y, 0)
        torch.testing.assert_close(f(x, W, y), linear_cross_entropy(x, W, y))


def test_a_trace_does_not_look_for_the_kernels_of_a_gpu(monkeypatch):
    monkeypatch.setattr(backends, "index_kernels", lambda z: pytest.fail("looked for"))
    y = torch.arange(N) % C
    compiled(lambda z: cross_entropy(z, y))(torch.randn(N, C))


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True], ids=["by torch", "by dynamo"])
def test_exported_outputs(strict):
    class Scored(nn.Module):
        def forward(self, x: Tensor, W: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            names = ("lse", "log_prob", "argmax", "in_top_k", "entropy")
            found = linear_cross_entropy_outputs(x, W, y, outputs=names, softcap=1.5, z_loss=0.1)
            return tuple(value for value in found if value is not None)

    arguments = torch.randn(N, D), torch.randn(C, D), torch.randint(C, (N,))
    program = torch.export.export(Scored(), arguments, strict=strict).module()
    torch.testing.assert_close(program(*arguments), Scored()(*arguments))


class Network(nn.Module):
    """A network that ends in softmax regression and computes its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(D, 8), nn.ReLU())
        self.top = SoftmaxRegression(8, C)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.top.loss(self.hidden(x), y, label_smoothing=0.1)


def parameter_gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


by_inductor = pytest.param("inductor", marks=[needs_compiler, pytest.mark.slow])


@pytest.mark.parametrize("backend", ["aot_eager", by_inductor])
def test_within_a_compiled_network(backend):
    model, x, y = Network(), torch.randn(N, D), torch.randint(C, (N,))
    ours, truth = (f(x, y) for f in (compiled(model, backend), model))
    torch.testing.assert_close(ours, truth)
    torch.testing.assert_close(parameter_gradients(model, ours), parameter_gradients(model, truth))


def test_the_loss_module():
    loss, y = CrossEntropyLoss(torch.rand(C) + 0.5, label_smoothing=0.1), torch.randint(C, (N,))
    assert_compiles(lambda z: loss(z, y), torch.randn(N, C))


@every_case
@pytest.mark.slow
def test_no_graph_break(case):
    target, options = case
    z, x, W = torch.randn(N, C, requires_grad=True), torch.randn(N, D), torch.randn(C, D)
    found = torch._dynamo.explain(cross_entropy)(z, target, **options)
    assert (found.graph_count, found.graph_break_count) == (1, 0)
    torch.compiler.reset()
    found = torch._dynamo.explain(linear_cross_entropy)(x, W, target, **options)
    assert (found.graph_count, found.graph_break_count) == (1, 0)


@pytest.mark.parametrize("strict", [False, True], ids=["by torch", "by dynamo"])
def test_exported_program_computes_the_loss_for_any_batch_size(strict):
    model, x, y = Network(), torch.randn(N, D), torch.randint(C, (N,))
    shapes = ({0: torch.export.Dim("batch", min=2)},) * 2
    program = torch.export.export(model, (x, y), dynamic_shapes=shapes, strict=strict)
    loss = program.module()
    for n in (N, 2, 17):
        x, y = torch.randn(n, D), torch.randint(C, (n,))
        torch.testing.assert_close(loss(x, y), model(x, y))


@pytest.mark.slow
def test_compiled_derivative_transforms():
    y = torch.randint(C, (N,))

    def hessian(W: Tensor, x: Tensor) -> Tensor:
        return torch.func.jacrev(torch.func.jacrev(lambda W: linear_cross_entropy(x, W, y)))(W)

    x, W = torch.randn(N, D), torch.randn(C, D)
    truth = hessian(W, x)
    assert truth.abs().max() > 1e-3
    torch.testing.assert_close(compiled(hessian)(W, x), truth)
