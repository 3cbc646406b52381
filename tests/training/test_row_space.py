"""Fits in the space of the rows of X have the optimum, and the weights, of fits to X."""

import doctest
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from softmax_torch.solvers import fit
from softmax_torch.solvers.inputs import as_samples
from softmax_torch.solvers.objective import Objective
from softmax_torch.solvers.preconditioner import Kronecker
from softmax_torch.solvers.sampled_hessian import SampledHessian
from softmax_torch.training import row_space
from softmax_torch.training.convex_path import ConvexPath
from softmax_torch.training.convex_solver import ConvexSolver
from softmax_torch.training.row_space import RowSpace


def few_samples(n: int = 30, D: int = 90) -> tuple[Tensor, Tensor]:
    """Return samples with more features than samples; two rows are equal."""
    x = torch.randn(n, D, generator=torch.Generator().manual_seed(0))
    x[1] = x[0]
    return x, torch.arange(n) % 3


def layer(D: int = 90) -> nn.Linear:
    linear = nn.Linear(D, 3)
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear


def solve(optimizer: Any, x: Tensor, y: Tensor, steps: int = 100) -> None:
    optimizer.bind(x, y, None)
    for _ in range(steps):
        if not optimizer.ended:
            optimizer.step()


def test_the_example_of_the_module() -> None:
    assert doctest.testmod(row_space).failed == 0


def test_coordinates_keep_products_and_norms() -> None:
    x, _ = few_samples()
    space = RowSpace(x)
    assert space.z.shape == (30, 29)  # two rows are equal
    torch.testing.assert_close(space.z @ space.z.T, x.double() @ x.double().T, atol=1e-9, rtol=0)
    w = torch.randn(3, 29, dtype=torch.float64)
    W = space.outside(w)
    torch.testing.assert_close(x.double() @ W.T, space.z @ w.T)
    torch.testing.assert_close(W.norm(), w.norm())
    torch.testing.assert_close(space.inside(W), w)


@pytest.mark.parametrize("kind", ["solver", "path"])
def test_the_optimum_is_that_of_all_features(kind: str) -> None:
    x, y = few_samples()
    linear = layer()
    optimizer: ConvexSolver | ConvexPath
    if kind == "solver":
        optimizer = ConvexSolver(linear, "auto", 1e-10, 0.1)
    else:
        optimizer = ConvexPath(linear, "auto", 1e-10, [0.01, 0.1])
    solve(optimizer, x, y)
    assert optimizer.state_dict()["row_space"]
    expected = fit(x.double(), y, C=0.1, tol=1e-12)
    W, b = linear.weight.double(), linear.bias.double()
    torch.testing.assert_close(W - W.mean(0), expected.weight, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(b - b.mean(), expected.bias, atol=2e-5, rtol=1e-4)


def test_a_path_resumes_with_the_same_bits() -> None:
    x, y = few_samples()
    Cs = [0.01, 0.03, 0.1, 0.3]
    whole, first, second = layer(), layer(), layer()
    solve(ConvexPath(whole, "auto", 1e-8, Cs), x, y)
    interrupted, resumed = (ConvexPath(linear, "auto", 1e-8, Cs) for linear in (first, second))
    solve(interrupted, x, y, steps=2)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(interrupted.state_dict())
    solve(resumed, x, y)
    assert torch.equal(second.weight, whole.weight)
    assert torch.equal(second.bias, whole.bias)


def test_a_run_of_an_earlier_version_continues_with_all_features() -> None:
    """Its state has no mark, and its solutions have D features."""
    x, y = few_samples()
    Cs = [0.01, 0.03, 0.1]
    before, after = layer(), layer()
    old = ConvexPath(before, "auto", 1e-8, Cs)
    old._row_space = False
    solve(old, x, y, steps=2)
    state = old.state_dict()
    assert state.keys() == {"fits", "solved"}
    new = ConvexPath(after, "auto", 1e-8, Cs)
    new.load_state_dict(state)
    solve(new, x, y)
    solve(old, x, y)
    assert torch.equal(after.weight, before.weight)


def test_many_samples_keep_their_features() -> None:
    assert RowSpace.helps(torch.zeros(45, 90))
    assert not RowSpace.helps(torch.zeros(46, 90))
    assert not RowSpace.helps(torch.zeros(5000, 1).expand(5000, 20000))


def test_a_preconditioner_of_float32_samples_takes_float64_probabilities() -> None:
    """The last, accurate Newton steps of a fit to large samples do."""
    x, y = few_samples(200, 20)
    objective = Objective(as_samples(x, None, torch.float32), y, 3, None, True)
    sampled = SampledHessian(objective, torch.zeros(3, 21, dtype=torch.float64), 0, torch.float64)
    g = torch.randn(3, 21, dtype=torch.float64)
    d = Kronecker(sampled).inverse(0.1)(g)
    assert d.dtype == torch.float64
    assert float((d * g).sum()) > 0
