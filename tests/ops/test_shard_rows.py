"""The kernels and the rule of a shard of the classes against their twins of ``shard_maths``."""

import pytest
import torch
from torch import Tensor

from softmax_torch import shard_maths
from softmax_torch.maths import Target
from softmax_torch.ops import budgets, shard_rows
from softmax_torch.ops.linear_rows import Linear
from softmax_torch.shard_maths import ShardValues

N, D = 7, 3
VECTORS = ["no u", "class vector", "vector a row"]

classes = pytest.mark.parametrize("C", [1, 4, 11])
vectors = pytest.mark.parametrize("vector", VECTORS)


def problem(C: int, vector: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Target]:
    """Logits, and a target whose class is in another shard in some rows."""
    torch.manual_seed(0)
    y = torch.randint(-1, C, (N,))
    y[:2] = torch.tensor([-1, 0])
    u = {"no u": None, "class vector": torch.rand(C), "vector a row": torch.rand(N, C)}[vector]
    return 3 * torch.randn(N, C, dtype=dtype), Target(y, None if u is None else u.to(dtype))


def gradients() -> ShardValues:
    torch.manual_seed(1)
    return ShardValues(*torch.rand(4, N, dtype=torch.float64))


@vectors
@classes
@pytest.mark.parametrize("kind", ["ordinary", "masked", "around 1e4"])
def test_numbers(C: int, vector: str, kind: str) -> None:
    z, target = problem(C, vector)
    if kind == "masked":
        z[2, :] = -torch.inf
        target = Target(target.y, None)
    z = z + 1e4 if kind == "around 1e4" else z
    truth = shard_maths.shard_values(z, target)
    torch.testing.assert_close(shard_rows.shard_values(z.clone(), target), truth)


@vectors
@classes
def test_gradient(C: int, vector: str) -> None:
    z, target = problem(C, vector)
    largest, g = shard_maths.shard_values(z, target).largest, gradients()
    truth = shard_maths.shard_vjp(z, target, largest, g)
    torch.testing.assert_close(shard_rows.shard_vjp(z.clone(), target, largest, g), truth)


def test_no_rows_are_selected_since_the_host_would_wait_for_a_gpu(monkeypatch) -> None:
    def selected(*args: object) -> None:
        raise AssertionError("the host waits")

    for name in ("nonzero", "__getitem__", "__setitem__", "item", "tolist"):
        monkeypatch.setattr(Tensor, name, selected)
    z, target = problem_without_indexing()
    numbers = shard_rows.shard_values(z.clone(), target)
    shard_rows.shard_vjp(z.clone(), target, numbers.largest, numbers)


def problem_without_indexing() -> tuple[Tensor, Target]:
    return torch.zeros(3, 2), Target(torch.arange(3).sub(1).clamp(max=1), torch.ones(2))


@vectors
@classes
def test_the_formulas_of_the_gradients_are_the_derivatives_of_the_numbers(
    C: int, vector: str
) -> None:
    z, target = problem(C, vector)
    u = None if target.u is None else target.u.requires_grad_()
    leaves = [z.requires_grad_(), *([] if u is None else [u])]
    values, g = shard_maths.shard_values(z, target), gradients()
    total = sum((v * w).sum() for v, w in zip(values[1:], g[1:], strict=True))
    expected = torch.autograd.grad(total, leaves)
    found = [shard_maths.shard_vjp(z, target, values.largest, g)]
    if u is not None:
        found.append(shard_maths.shard_vjp_u(z, u, values.largest, g.spread))
    torch.testing.assert_close([t.detach() for t in found], list(expected))


def test_half_precision_is_computed_in_float32() -> None:
    z, target = problem(11, "class vector", torch.bfloat16)
    found = shard_rows.shard_values(z.clone(), target)
    truth = shard_maths.shard_values(z.double(), target)
    assert {t.dtype for t in found} == {torch.float32}
    torch.testing.assert_close([t.double() for t in found], list(truth), rtol=1e-5, atol=1e-5)
    g = ShardValues(*(t.float() for t in gradients()))
    expected = shard_maths.shard_vjp(z, target, found.largest, g)
    assert expected.dtype == z.dtype
    torch.testing.assert_close(shard_rows.shard_vjp(z, target, found.largest, g), expected)


@vectors
@pytest.mark.parametrize("C", [0, 1, 4])
def test_the_rule_of_a_layer_is_the_formulas_of_its_logits(
    C: int, vector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes blocks of two rows, and an empty shard."""
    monkeypatch.setattr(budgets, "logits_budget", lambda x: 2 * max(C, 1) * x.element_size())
    _, (y, u) = problem(max(C, 1), vector)
    target = Target(torch.full_like(y, -1), None) if C == 0 else Target(y, u)
    x, W, b = torch.randn(N, D).double(), torch.randn(C, D).double(), torch.randn(C).double()
    leaves = [t.requires_grad_() for t in (x, W, b)]
    if target.u is not None:
        leaves.append(target.u.requires_grad_())
    linear = Linear(x, W, b)
    results = []
    for values in (
        shard_rows.linear_shard_values(linear, target),
        shard_maths.shard_values(linear.logits(), target),
    ):
        total = sum((v * w).sum() for v, w in zip(values[1:], gradients()[1:], strict=True))
        given = torch.autograd.grad(total, leaves, materialize_grads=True)
        results.append([values.largest, *(v.detach() for v in values[1:]), *given])
    torch.testing.assert_close(*results)


def test_a_layer_without_features_has_its_bias_as_logits() -> None:
    x, W = torch.zeros(N, 0).double(), torch.zeros(4, 0).double()
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)
    linear, (_, target) = Linear(x, W, b), problem(4, "no u")
    found = shard_rows.linear_shard_values(linear, target)
    truth = shard_maths.shard_values(linear.logits(), target)
    torch.testing.assert_close([v.detach() for v in found], [v.detach() for v in truth])
    slopes = [torch.autograd.grad(values.rivals.sum(), b)[0] for values in (found, truth)]
    torch.testing.assert_close(*slopes)
