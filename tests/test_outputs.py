"""cross_entropy_outputs: the loss, and numbers of rows that separate calls of torch give."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import in_everything, results
from torch import Tensor

from softmax_torch import (
    SoftmaxRegression,
    cross_entropy,
    cross_entropy_outputs,
    linear_cross_entropy,
    linear_cross_entropy_outputs,
    maths,
)
from softmax_torch.loss import outputs as loss_outputs
from softmax_torch.loss.outputs import CrossEntropyOutputs
from softmax_torch.ops import budgets

pytestmark = pytest.mark.usefixtures("kernels")  # every test, with both kernels

ALL = ("lse", "log_prob", "z_loss", "argmax", "in_top_k", "entropy")
CONSTANTS = ("z_loss", "argmax", "in_top_k", "entropy")
OPTIONS = {
    "plain": {},
    "softcap, scale": {"softcap": 1.5, "logit_scale": 0.7},
    "all": {"label_smoothing": 0.3, "z_loss": 0.1, "softcap": 4.0},
    "sum": {"reduction": "sum", "z_loss": 0.1},
    "none": {"reduction": "none", "z_loss": 0.1},
}
SHAPES = [(5,), (6, 3), (9, 70), (4, 5, 6), (2, 70, 3, 2)]
K = 2

every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def expected(z: Tensor, y: Tensor, k: int = K, **options) -> CrossEntropyOutputs:
    """Return the outputs by separate calls of torch, for a row of class y in each place."""
    loss = cross_entropy(z, y, **options)
    without = cross_entropy(z, y, **{**options, "z_loss": 0.0})
    at = min(1, z.dim() - 1)
    transform = maths.LogitTransform(options.get("softcap"), options.get("logit_scale", 1.0))
    t = transform.apply(z).movedim(at, -1)
    log_p, counted = t.log_softmax(-1), y != -100
    true = y.where(counted, 0).unsqueeze(-1)
    log_prob = torch.where(counted, log_p.gather(-1, true).squeeze(-1), 0)
    hit = (t.topk(min(k, t.shape[-1])).indices == true).any(-1) & counted
    entropy = -(log_p.exp() * log_p).sum(-1)
    return CrossEntropyOutputs(
        loss, t.logsumexp(-1), log_prob, loss - without, t.argmax(-1), hit, entropy
    )


def assert_equal(found: CrossEntropyOutputs, truth: CrossEntropyOutputs, names=ALL) -> None:
    for name in ("loss", *ALL):
        value = getattr(found, name)
        if name in ("loss", *names):
            torch.testing.assert_close(
                value, getattr(truth, name), msg=lambda m, n=name: f"{n}: {m}"
            )
        else:
            assert value is None


def problem(shape: tuple[int, ...], dtype=torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    y = torch.randint(shape[min(1, len(shape) - 1)], rows)
    if len(rows) > 0:
        y.view(-1)[1] = -100
    return (3 * torch.randn(shape, dtype=torch.float64)).to(dtype), y


@pytest.mark.parametrize("names", [ALL, CONSTANTS, ("argmax",), ()], ids=str)
@every_option
@shapes
def test_of_logits(shape, options, names) -> None:
    z, y = problem(shape)
    z.requires_grad_()
    found = cross_entropy_outputs(z, y, outputs=names, top_k=K, **options)
    assert_equal(found, expected(z, y, **options), names)


@pytest.mark.parametrize("names", [ALL, CONSTANTS], ids=["all", "constants"])
@every_option
@pytest.mark.parametrize(("D", "C"), [(3, 70), (9, 4)], ids=["C > D", "C < D"])
def test_of_a_layer_in_blocks(D, C, options, names, monkeypatch) -> None:
    monkeypatch.setattr(budgets, "logits_budget", lambda x: 40 * C * x.element_size())
    torch.manual_seed(0)
    N = 1000  # too many logits to be kept
    x, W, b = (torch.randn(size, dtype=torch.float64) for size in [(N, D), (C, D), (C,)])
    y = torch.randint(C, (N,))
    y[1] = -100
    W.requires_grad_()

    def ours(x: Tensor, W: Tensor, b: Tensor) -> CrossEntropyOutputs:
        return linear_cross_entropy_outputs(
            x, W, y, linear_bias=b, outputs=names, top_k=K, **options
        )

    assert_equal(ours(x, W, b), expected(F.linear(x, W, b), y, **options), names)
    found = results(lambda *layer: ours(*layer).loss, x, W, b)
    truth = results(
        lambda x, W, b: linear_cross_entropy(x, W, y, linear_bias=b, **options), x, W, b
    )
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("name", ["lse", "log_prob"])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_derivatives_of_row_numbers(name, softcap) -> None:
    torch.manual_seed(0)
    x, W = torch.randn(500, 2, dtype=torch.float64), torch.randn(80, 2, dtype=torch.float64)
    y = torch.randint(80, (500,))

    def ours(x: Tensor, W: Tensor) -> Tensor:
        found = linear_cross_entropy_outputs(x, W, y, outputs=(name,), softcap=softcap)
        return getattr(found, name) + found.loss

    def truth(x: Tensor, W: Tensor) -> Tensor:
        found = expected(F.linear(x, W), y, softcap=softcap)
        return getattr(found, name) + found.loss

    torch.testing.assert_close(results(ours, x, W), results(truth, x, W))

    def penalty(f, W: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(f(x, W).square().mean(), W, create_graph=True)
        return g.square().sum()

    second = [results(lambda W, f=f: penalty(f, W), W) for f in (ours, truth)]
    torch.testing.assert_close(*second)


def test_constants_carry_no_graph() -> None:
    z, y = problem((6, 3))
    found = cross_entropy_outputs(z.requires_grad_(), y, outputs=ALL, top_k=K)
    assert found.lse.requires_grad
    assert found.log_prob.requires_grad
    assert not any(getattr(found, name).requires_grad for name in CONSTANTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(dtype) -> None:
    z, y = problem((200, 70), dtype)
    found = cross_entropy_outputs(z, y, outputs=ALL, top_k=K, softcap=5.0)
    truth = expected(z.double(), y, softcap=5.0)
    for name in ("lse", "log_prob", "entropy"):
        value = getattr(found, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), getattr(truth, name), rtol=1e-5, atol=1e-5)
    assert found.z_loss.dtype == found.loss.dtype == dtype
    assert torch.equal(found.argmax, maths.LogitTransform(5.0).apply(z).argmax(1))


def test_the_first_of_equal_logits_comes_first() -> None:
    z = torch.tensor([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    y = torch.tensor([2, 3])
    hits = []
    for k in range(1, 6):
        found = cross_entropy_outputs(z, y, outputs=("argmax", "in_top_k"), top_k=k)
        assert found.argmax.tolist() == [1, 0]
        hits.append(found.in_top_k.tolist())
    assert hits == [[False, False], [True, False], [True, False], [True, True], [True, True]]


def test_logits_that_are_not_finite() -> None:
    """As torch has them; a row with NaN is no hit."""
    inf, nan = math.inf, math.nan
    z = torch.tensor([[inf, 1, 2], [-inf, -inf, -inf], [1, nan, 3], [-inf, 2, 2], [0, -inf, -inf]])
    y = torch.tensor([0, 0, 2, 1, 0])
    found = cross_entropy_outputs(z, y, outputs=("argmax", "entropy", "in_top_k", "lse"), top_k=3)
    assert torch.equal(found.argmax, z.argmax(1))
    torch.testing.assert_close(found.lse[2:], z.logsumexp(1)[2:], equal_nan=True)
    truth = torch.tensor([nan, nan, nan, math.log(2), 0])
    torch.testing.assert_close(found.entropy, truth, equal_nan=True)
    assert found.in_top_k.tolist() == [True, True, False, True, True]


def test_the_entropy_of_a_row_that_is_nearly_certain() -> None:
    z = torch.tensor([[0.0, 40.0, 1.0]])
    found = cross_entropy_outputs(z, torch.tensor([0]), outputs=("entropy",)).entropy
    p = torch.tensor([math.exp(-40), math.exp(-39)], dtype=torch.float64)
    truth = (p * torch.tensor([41.0, 40.0])).sum().float()  # -p log p, and p of the third
    torch.testing.assert_close(found[0], truth, rtol=1e-6, atol=0)


def test_masked_rows_and_class_probabilities() -> None:
    torch.manual_seed(0)
    z, t = torch.randn(6, 4), torch.rand(6, 4).softmax(1)
    mask = torch.tensor([True, False, True, True, False, True])
    t[~mask] = math.nan
    names = ("lse", "entropy", "argmax", "z_loss")
    found = cross_entropy_outputs(z, t, outputs=names, sample_weight=mask, z_loss=0.1)
    kept = cross_entropy_outputs(z[mask], t[mask], outputs=names, z_loss=0.1)
    torch.testing.assert_close((found.loss, found.z_loss), (kept.loss, kept.z_loss))
    torch.testing.assert_close(found.lse, z.logsumexp(1))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_masked_row_may_hold_anything(reduction: str) -> None:
    torch.manual_seed(0)
    z, t = torch.randn(6, 4, dtype=torch.float64), torch.rand(6, 4, dtype=torch.float64).softmax(1)
    mask = torch.tensor([True, False, True, True, False, True])
    bad = t.masked_fill(~mask.unsqueeze(1), math.nan)

    def loss(z: Tensor, t: Tensor) -> Tensor:
        return cross_entropy(z, t, reduction=reduction, sample_weight=mask)

    torch.testing.assert_close(results(loss, z, bad), results(loss, z, t))


def test_no_rows() -> None:
    found = cross_entropy_outputs(
        torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), outputs=ALL, reduction="sum"
    )
    assert found.loss == found.z_loss == 0
    assert found.argmax.shape == found.lse.shape == found.in_top_k.shape == (0,)


def test_under_autocast() -> None:
    torch.manual_seed(0)
    x, W, y = torch.randn(400, 8), torch.randn(100, 8), torch.randint(100, (400,))
    with torch.autocast("cpu", torch.bfloat16):
        z = F.linear(x, W)
        found = linear_cross_entropy_outputs(x, W, y, outputs=ALL, top_k=K)
    assert_equal(found, expected(z.float(), y))


def test_compiled_without_a_break() -> None:
    z, y = problem((6, 5), torch.float32)

    def ours(z: Tensor) -> tuple[Tensor, ...]:
        return tuple(cross_entropy_outputs(z, y, outputs=ALL, top_k=K, z_loss=0.1))

    f = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(f(z), ours(z))


def test_under_vmap() -> None:
    z, y = problem((6, 5))
    batch = torch.stack([z, 2 * z])
    found = torch.vmap(lambda z: tuple(cross_entropy_outputs(z, y, outputs=ALL, top_k=K)))(batch)
    for i in range(2):
        assert_equal(CrossEntropyOutputs(*(value[i] for value in found)), expected(batch[i], y))


def test_of_the_module() -> None:
    torch.manual_seed(0)
    model = SoftmaxRegression(3, 4)
    x, y = torch.randn(8, 3), torch.randint(4, (8,))
    found = model.loss_outputs(x, y, outputs=("argmax",), label_smoothing=0.1)
    torch.testing.assert_close(found.loss, model.loss(x, y, label_smoothing=0.1))
    assert torch.equal(found.argmax, model.predict(x))


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"outputs": ("loss",)}, ValueError, "outputs: expected names among lse, .*; got loss"),
        ({"outputs": "lse"}, TypeError, "outputs: expected a sequence of names .* got 'lse'"),
        ({"outputs": ("in_top_k",), "top_k": 0}, ValueError, "top_k: .* got 0"),
        ({"outputs": (), "softness": 1}, TypeError, "softness"),
    ],
    ids=["unknown", "a string", "k", "an unknown option"],
)
def test_mistakes(given, kind, message) -> None:
    z, y = problem((6, 3))
    with pytest.raises(kind, match=message):
        cross_entropy_outputs(z, y, **given)


@pytest.mark.parametrize("name", ["log_prob", "in_top_k"])
def test_class_probabilities_have_no_class(name) -> None:
    z = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=f"outputs: {name} needs class indices, got class prob"):
        cross_entropy_outputs(z, z.softmax(1), outputs=(name,))


def test_what_is_not_asked_for_is_not_computed(monkeypatch) -> None:
    z, y = problem((6, 3))

    def fail(*args):
        raise AssertionError("statistics were taken")

    monkeypatch.setattr(loss_outputs.Collector, "observe", fail)
    cross_entropy(z, y)
    cross_entropy_outputs(z, y, outputs=("lse", "log_prob"))
    with pytest.raises(AssertionError, match="taken"):
        cross_entropy_outputs(z, y, outputs=("argmax",))


def test_gradients_of_weights() -> None:
    """A trained class weight takes another rule, with the same outputs."""
    torch.manual_seed(0)
    z, y = problem((6, 3))
    w, s = torch.rand(3, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    options = {"weight": w, "sample_weight": s, "z_loss": 0.1}
    found = in_everything(
        lambda z, **o: cross_entropy_outputs(z, y, outputs=CONSTANTS, **o).loss, z, **options
    )
    truth = in_everything(lambda z, **o: cross_entropy(z, y, **o), z, **options)
    torch.testing.assert_close(found, truth)
