"""linear_cross_entropy is cross_entropy of F.linear, for every option and every set of leaves."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from support import (
    common_option,
    every_option,
    in_everything,
    need_library,
    options,
    peak_memory,
    reference,
    results,
)
from torch import Tensor

from softmax_torch import SoftmaxRegression, linear_cross_entropy
from softmax_torch.loss import route
from softmax_torch.ops import backends, budgets
from softmax_torch.ops.native import calls

D = 6
LEAVES = [set(names) for n in range(4) for names in itertools.combinations(("x", "W", "b"), n)]
classes = pytest.mark.parametrize("C", [1, 4, 11])


@pytest.fixture(params=["whole", "blocks"])
def blocks(request: pytest.FixtureRequest, kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the route for many logits, in one block or in blocks of at most two rows.

    Native kernels compute one loss per row, half precision and class probabilities that are
    trained in such blocks, and everything else in one pass.
    """
    monkeypatch.setattr(route, "FEW", 0)
    if request.param == "blocks":
        monkeypatch.setattr(budgets, "logits_budget", lambda x: 2 * 11 * x.element_size())
        monkeypatch.setattr(budgets, "input_budget", lambda x: 2 * D * x.element_size())


def problem(
    rows: tuple[int, ...], C: int, dtype: torch.dtype = torch.float64, soft: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    tensors = {
        "x": torch.randn(*rows, D, dtype=dtype),
        "W": torch.randn(C, D, dtype=dtype),
        "b": torch.randn(C, dtype=dtype),
    }
    target = torch.randn(*rows, C, dtype=dtype).softmax(-1) if soft else torch.randint(C, rows)
    return tensors, target


def by_definition(
    x: Tensor, W: Tensor, target: Tensor, linear_bias: Tensor | None, **given
) -> Tensor:
    """Return the ``reference`` of the logits, with classes last."""
    z = F.linear(x, W, linear_bias)
    if z.dim() < 3:
        return reference(z, target, **given)
    rows = z.shape[:-1]
    target = target.flatten(0, -2) if target.shape == z.shape else target.flatten()
    given = {k: v.flatten() if k == "sample_weight" else v for k, v in given.items()}
    loss = reference(z.flatten(0, -2), target, **given)
    return loss.view(rows) if loss.dim() else loss


def of_torch(
    x: Tensor, W: Tensor, target: Tensor, linear_bias: Tensor | None = None, **given
) -> Tensor:
    """Return the loss by torch's two operators, for x (N, D)."""
    return F.cross_entropy(F.linear(x, W, linear_bias), target, **given)


OPERATORS = (linear_cross_entropy, of_torch)


def both(tensors: dict[str, Tensor], target: Tensor, leaves: set[str], **given):
    """Return value and gradients in the leaves, of our function and by definition."""

    def call(f):
        def g(*values: Tensor) -> Tensor:
            t = tensors | dict(zip(sorted(leaves), values, strict=True))
            return f(t["x"], t["W"], target, linear_bias=t["b"], **given)

        return g

    return [
        results(call(f), *(tensors[name] for name in sorted(leaves)))
        for f in (linear_cross_entropy, by_definition)
    ]


@common_option
@classes
@pytest.mark.parametrize("leaves", LEAVES, ids=lambda s: "".join(sorted(s)) or "none")
def test_every_option_and_set_of_leaves(
    leaves: set[str], C: int, chosen: dict, blocks: None
) -> None:
    tensors, y = problem((5,), C)
    ours, truth = both(tensors, y, leaves, **options(chosen, C, (5,), y.double().dtype))
    torch.testing.assert_close(ours, truth)


@every_option
@classes
def test_class_probabilities(C: int, chosen: dict, blocks: None) -> None:
    tensors, t = problem((5,), C, soft=True)
    ours, truth = both(tensors, t, {"x", "W", "b"}, **options(chosen, C, (5,), t.dtype))
    torch.testing.assert_close(ours, truth)


@every_option
@classes
@pytest.mark.parametrize("soft", [False, True])
def test_every_tensor_has_a_gradient(soft: bool, C: int, chosen: dict, blocks: None) -> None:
    """Class probabilities, class weights and sample weights have one too."""
    tensors, target = problem((5,), C, soft=soft)
    leaves, fixed = ((target,), ()) if soft else ((), (target,))
    given = options(chosen, C, (5,), torch.float64)

    def call(f):
        return lambda x, W, b, *rest, **k: f(x, W, *rest, *fixed, linear_bias=b, **k)

    ours, truth = (
        in_everything(call(f), *tensors.values(), *leaves, **given)
        for f in (linear_cross_entropy, by_definition)
    )
    torch.testing.assert_close(ours, truth)


LAYOUTS = {
    "transposed": lambda t: t.t().contiguous().t(),
    "with gaps": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "one row for all": lambda t: t[:1].expand(t.shape),
}


@classes
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("chosen", [{}, {"reduction": "none"}], ids=str)
def test_layouts(chosen: dict, layout, C: int, blocks: None) -> None:
    """The input and the weight have each layout."""
    tensors, y = problem((5,), C)

    def call(f, change):
        return lambda x, W: f(change(x), change(W), y, linear_bias=tensors["b"], **chosen)

    leaves = tensors["x"], tensors["W"]
    expected = results(call(by_definition, layout), *leaves)
    torch.testing.assert_close(results(call(linear_cross_entropy, layout), *leaves), expected)
    # and as leaves, whose gradients have their values whatever the layout
    x, W = (layout(t).detach().requires_grad_() for t in leaves)
    loss = linear_cross_entropy(x, W, y, linear_bias=tensors["b"], **chosen)
    found = torch.autograd.grad(loss.sum(), (x, W))
    loss = by_definition(x, W, y, linear_bias=tensors["b"], **chosen)
    torch.testing.assert_close(found, torch.autograd.grad(loss.sum(), (x, W)))


@classes
@pytest.mark.parametrize("rows", [(), (5,), (2, 3), (2, 2, 2), (0,)], ids=str)
@pytest.mark.parametrize("chosen", [{}, {"reduction": "none"}, {"label_smoothing": 0.2}], ids=str)
def test_shapes(rows: tuple[int, ...], C: int, chosen: dict, blocks: None) -> None:
    tensors, y = problem(rows, C)
    ours, truth = both(tensors, y, {"x", "W", "b"}, **chosen)
    torch.testing.assert_close(ours, truth, equal_nan=True)


@classes
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignored_rows(C: int, reduction: str, blocks: None) -> None:
    tensors, y = problem((5,), C)
    y[[1, 4]] = -100
    ours, truth = both(tensors, y, {"x", "W", "b"}, reduction=reduction)
    torch.testing.assert_close(ours, truth)
    tensors["x"][[1, 4]] = torch.nan  # ignored rows have no effect
    value, *_ = both(tensors, y, {"x"}, reduction=reduction)[0]
    assert value.isfinite().all()


@classes
def test_without_bias(C: int, blocks: None) -> None:
    tensors, y = problem((5,), C)
    ours, truth = (
        results(lambda x, W, f=f: f(x, W, y, linear_bias=None), tensors["x"], tensors["W"])
        for f in (linear_cross_entropy, by_definition)
    )
    torch.testing.assert_close(ours, truth)


@classes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(C: int, dtype: torch.dtype, blocks: None) -> None:
    """The gradient of the weight is summed in float32, whatever the blocks."""
    tensors, y = problem((200,), C, dtype)
    ours, _ = both(tensors, y, {"x", "W", "b"})
    assert [t.dtype for t in ours] == [dtype] * 4
    doubles = {name: t.double() for name, t in tensors.items()}
    _, truth = both(doubles, y, {"x", "W", "b"})
    for x, true in zip(ours, truth, strict=True):
        size = max(true.abs().max().item(), 1e-2)
        torch.testing.assert_close(x.double(), true, rtol=0, atol=4 * torch.finfo(dtype).eps * size)


@pytest.mark.parametrize("C", [4, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast(reduction: str, dtype: torch.dtype, C: int, blocks: None) -> None:
    """In half precision, except float64, which autocast leaves alone."""
    tensors, y = problem((5,), C, dtype)
    under = torch.autocast("cpu", torch.bfloat16)
    ours, torchs = (
        results(
            under(lambda x, W, b, f=f: f(x, W, y, linear_bias=b, reduction=reduction)),
            *tensors.values(),
        )
        for f in (linear_cross_entropy, of_torch)
    )
    assert [t.dtype for t in ours] == [t.dtype for t in torchs]
    tolerance = 1e-10 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(ours, torchs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("C", [4, 11])
def test_class_weights_under_autocast(C: int, blocks: None) -> None:
    """Features are in half precision, from the layer before; class weights are in float32."""
    tensors, y = problem((5,), C, torch.bfloat16)
    w = torch.linspace(0.5, 2, C)
    with torch.autocast("cpu", torch.bfloat16):
        ours, torchs = (f(tensors["x"], tensors["W"], y, weight=w) for f in OPERATORS)
    assert ours.dtype == torchs.dtype == torch.float32
    torch.testing.assert_close(ours, torchs, rtol=2e-2, atol=2e-2)


@classes
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_class_probabilities_of_another_type(
    dtype: torch.dtype, reduction: str, C: int, blocks: None
) -> None:
    """The dtype of the loss is torch's, whatever the blocks."""
    tensors, t = problem((5,), C, torch.float32, soft=True)
    ours, torchs = (
        f(tensors["x"], tensors["W"], t.to(dtype), reduction=reduction) for f in OPERATORS
    )
    assert ours.dtype == torchs.dtype
    torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


def test_without_features(blocks: None) -> None:
    """Only the bias is left."""
    x, W, b = torch.randn(5, 0), torch.randn(3, 0), torch.randn(3)
    y = torch.arange(5) % 3
    ours, torchs = (results(lambda b, f=f: f(x, W, y, linear_bias=b), b) for f in OPERATORS)
    torch.testing.assert_close(ours, torchs)


def test_a_weight_with_positions(kernels) -> None:
    """(C, d, D), as in torch: a logit for each class and position."""
    torch.manual_seed(0)
    x, W = torch.randn(5, D, dtype=torch.float64), torch.randn(4, 3, D, dtype=torch.float64)
    y = torch.randint(4, (5, 3))
    ours, truth = (
        results(f, x, W)
        for f in (
            lambda x, W: linear_cross_entropy(x, W, y),
            lambda x, W: F.cross_entropy(torch.einsum("nd,cpd->ncp", x, W), y),
        )
    )
    torch.testing.assert_close(ours, truth)


@classes
@every_option
def test_arguments_are_not_written_to(C: int, chosen: dict, blocks: None) -> None:
    tensors, y = problem((5,), C)
    for tensor in tensors.values():
        tensor.requires_grad_()
    given = options(chosen, C, (5,), torch.float64)
    everything = [*tensors.values(), y, *(v for v in given.values() if isinstance(v, Tensor))]
    before = [(t.detach().clone(), t._version) for t in everything]
    loss = linear_cross_entropy(tensors["x"], tensors["W"], y, linear_bias=tensors["b"], **given)
    loss.sum().backward()
    for tensor, (values, version) in zip(everything, before, strict=True):
        assert torch.equal(tensor, values)
        assert tensor._version == version


def test_only_the_gradients_that_are_needed_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of torch's kernels a frozen input saves a product of matrices, a frozen weight another."""
    monkeypatch.setattr(route, "FEW", 0)
    counted = []
    for name in ("mm", "addmm"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, f=plain, **k: counted.append(1) or f(*a, **k))
    added = Tensor.addmm_
    monkeypatch.setattr(Tensor, "addmm_", lambda *a, **k: counted.append(1) or added(*a, **k))

    found = {}
    with backends.cpu_kernels("torch"):
        for leaves in LEAVES:
            counted.clear()
            assert_gradients_of(leaves, torch.float64)
            found["".join(sorted(leaves))] = len(counted)
    assert found == {
        "": 1, "x": 2, "W": 2, "b": 1, "Wx": 3, "bx": 2, "Wb": 2, "Wbx": 3
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["total", "mean NLL"])
def test_one_pass_is_asked_for_the_gradients_that_are_needed(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library computes dx, or dW and db together, or both, or neither, in one reading of x."""
    need_library()
    asked = []
    functions = calls.functions()
    run_pass, mean_nll = functions.run_pass, functions.linear_mean_nll

    def passed(call) -> int:
        p = call._obj
        asked.append((p.dx, p.dweight, p.dbias))
        return run_pass(call)

    def called(*args) -> int:
        dw, db, dx = args[9:12]
        asked.append((dx, dw, db))
        return mean_nll(*args)

    monkeypatch.setattr(functions, "run_pass", passed)
    monkeypatch.setattr(functions, "linear_mean_nll", called)
    with backends.cpu_kernels("native"):
        for leaves in LEAVES:
            asked.clear()
            assert_gradients_of(leaves, dtype)
            ((dx, dweight, dbias),) = asked
            assert (dx is not None) == ("x" in leaves)
            assert (dweight is not None) == (dbias is not None) == bool({"W", "b"} & leaves)


def assert_gradients_of(leaves: set[str], dtype: torch.dtype) -> None:
    """Assert that a layer has gradients of these of its tensors alone."""
    tensors, y = problem((5,), 11, dtype)
    for name in leaves:
        tensors[name].requires_grad_()
    loss = linear_cross_entropy(tensors["x"], tensors["W"], y, linear_bias=tensors["b"])
    if leaves:
        loss.backward()
    assert {name for name, t in tensors.items() if t.grad is not None} == leaves


def test_many_classes_need_no_memory_for_their_logits(kernels) -> None:
    """The largest tensor is a block, not the (N, C) logits of 80 MB."""
    x, W = torch.randn(1000, 8, requires_grad=True), torch.randn(20000, 8, requires_grad=True)
    y = torch.randint(20000, (1000,))
    # two blocks of 32 MiB, and the gradients
    assert peak_memory(lambda: linear_cross_entropy(x, W, y).backward()) < 75e6


def test_the_module_uses_it_and_never_its_log_probabilities(
    kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SoftmaxRegression, "forward", lambda *_: pytest.fail("log-probabilities"))
    monkeypatch.setattr(SoftmaxRegression, "logits", lambda *_: pytest.fail("logits"))
    model = SoftmaxRegression(D, 4)
    x, y = torch.randn(5, D), torch.randint(4, (5,))
    expected = linear_cross_entropy(
        x, model.linear.weight, y, linear_bias=model.linear.bias, label_smoothing=0.1
    )
    assert torch.equal(model.loss(x, y, label_smoothing=0.1), expected)
