"""Objective, derivatives, sampled Hessians, preconditioners and solvers against definitions."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from softmax_torch.solvers import ConvergenceWarning, Progress, fit, inputs, preconditioner
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.preconditioner import Blocks, Diagonal, Full, Kronecker
from softmax_torch.solvers.problem import SOLVERS, WITH_L1
from softmax_torch.solvers.sampled_hessian import SampledHessian

SMOOTH = sorted(set(SOLVERS) - WITH_L1)
L2 = Penalty(0.05)


@cache
def generated(n: int = 80, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    y = torch.arange(n) % classes
    return X, y, torch.rand(n, generator=generator, dtype=torch.float64) + 0.5


def objective(weighted: bool = True, bias: bool = True) -> Objective:
    X, y, weight = generated()
    return Objective(inputs.as_samples(X, None, None), y, 3, weight if weighted else None, bias)


def by_torch(theta: Tensor, weighted: bool, bias: bool) -> Tensor:
    """Return F at theta, in plain torch."""
    X, y, weight = generated()
    W = theta[:, :4]
    z = X @ W.T + (theta[:, 4] if bias else 0)
    nll = torch.nn.functional.cross_entropy(z, y, reduction="none")
    w = weight if weighted else torch.ones_like(weight)
    return w @ nll / w.sum() + L2.l2 / 2 * W.square().sum()


def somewhere(bias: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4 + bias, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_derivatives_are_those_of_autograd(weighted: bool, bias: bool) -> None:
    own, theta, v = objective(weighted, bias), somewhere(bias), somewhere(bias).flip(0)

    def F(t: Tensor) -> Tensor:
        return by_torch(t, weighted, bias)

    value, gradient = own.evaluate(theta, L2, torch.float64)
    assert value == pytest.approx(float(F(theta)), rel=1e-13)
    torch.testing.assert_close(gradient, torch.func.grad(F)(theta))
    Hv = torch.func.jvp(torch.func.grad(F), (theta,), (v,))[1]
    p = own.probabilities(theta, torch.float64)
    torch.testing.assert_close(own.hessian_product(p, v, L2), Hv)
    several = own.evaluate_many([theta, 2 * theta], [L2, Penalty(0.0)], torch.float64)
    torch.testing.assert_close(several[0].gradient, gradient)
    alone = own.evaluate(2 * theta, Penalty(0.0), torch.float64)
    assert several[1].value == pytest.approx(alone.value, rel=1e-14)
    torch.testing.assert_close(several[1].gradient, alone.gradient)


def hessian() -> Tensor:
    H: Tensor = torch.func.hessian(lambda t: by_torch(t, True, True))(somewhere())
    return H


def matrix(apply: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the matrix (15, 15) of a linear map on tensors (3, 5)."""
    eye = torch.eye(15, dtype=torch.float64)
    return torch.stack([apply(row.view(3, 5)).flatten() for row in eye], 1)


def centre() -> Tensor:
    return matrix(lambda t: t - t.mean(0))


def estimated(own: Objective, seed: int = 0) -> SampledHessian:
    return SampledHessian(own, somewhere(), seed, torch.float64)


def test_full_sketch_is_the_hessian() -> None:
    """With all rows drawn, on the space orthogonal to moving all classes alike."""
    estimate = estimated(objective())
    inverse = matrix(Full(estimate).inverse(L2.l2))
    H, P = hessian().view(15, 15), centre()
    torch.testing.assert_close(inverse @ H @ P, P, atol=1e-5, rtol=0)


def test_blocks_are_those_of_the_hessian() -> None:
    estimate = estimated(objective())
    expected = torch.zeros(3, 5, 3, 5, dtype=torch.float64)
    for k in range(3):
        expected[k, :, k] = torch.linalg.inv(hessian()[k, :, k])
    got = matrix(Blocks(estimate).inverse(L2.l2))
    torch.testing.assert_close(got, centre() @ expected.view(15, 15), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [Full, Blocks, Kronecker, Diagonal])
def test_preconditioners_are_symmetric_and_positive(kind: Any) -> None:
    M = matrix(kind(estimated(objective())).inverse(L2.l2))
    P = centre()
    M = P @ M @ P
    torch.testing.assert_close(M, M.T)
    eigenvalues = torch.linalg.eigvalsh(M)
    assert eigenvalues[:5].abs().max() < 1e-9  # moving all classes alike
    assert eigenvalues[5] > 0
    H = P @ hessian().view(15, 15) @ P
    spectrum = torch.linalg.eigvals(M @ H).real.sort().values[5:]
    assert spectrum[-1] / spectrum[0] < {Full: 1.1, Blocks: 6, Kronecker: 9, Diagonal: 12}[kind]


def test_the_whole_hessian_has_digits_where_probabilities_are_1() -> None:
    """p - p^2 would be rounding alone, and the matrix not positive."""
    X, y, _ = generated()
    own = Objective(inputs.as_samples(X, None, None), y, 3)
    theta = 1e3 * somewhere()
    sampled = SampledHessian(own, theta, 0, torch.float64)
    assert 0 < sampled.curvatures.amax(0).min() < 1e-16
    H, diagonal = sampled.whole(), sampled.diagonal(sampled.curvatures).flatten()
    torch.testing.assert_close(H.diagonal(), diagonal, rtol=1e-10, atol=0)
    scale = diagonal.sqrt()
    assert (H / scale / scale.unsqueeze(1)).abs().max() <= 1 + 1e-9  # Cauchy and Schwarz


def test_columns_of_zeros_are_left_out_of_blocks() -> None:
    """Without a penalty they keep their gradient; with one they take Newton's step."""
    X, y, weight = generated()
    theta, used = somewhere(), [0, 1, 3, 4, 5]
    wide_X, wide_theta = X.new_zeros(len(X), 5), theta.new_zeros(3, 6)
    wide_X[:, used[:4]], wide_theta[:, used] = X, theta
    own = Objective(inputs.as_samples(wide_X, None, None), y, 3, weight)
    blocks = Blocks(SampledHessian(own, wide_theta, 0, torch.float64))
    plain = Blocks(estimated(objective()))
    assert len(blocks.grams[0]) == len(plain.grams[0]) == 5
    g = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for l2 in (0.0, L2.l2):
        step = blocks.inverse(l2)(g)
        torch.testing.assert_close(step[:, used], plain.inverse(l2)(g[:, used]))
        alone = g[:, 2] / (l2 or 1.0)
        torch.testing.assert_close(step[:, 2], alone - alone.mean())


def test_drawn_rows_stand_for_all() -> None:
    """The mean of many estimates from few rows is the block of all rows."""
    X, y, weight = generated(2000)
    own = Objective(inputs.as_samples(X, None, None), y, 3, weight)
    estimate = estimated(own)
    assert estimate.uses_all_rows
    c = estimate.w * estimate.p[:, 0]
    diagonal = estimate.diagonal(c.unsqueeze(1))
    scale = diagonal[0].sqrt()
    exact = estimate.block(c, scale, c)
    torch.testing.assert_close(exact.diagonal(), torch.ones(5, dtype=torch.float64))
    estimate.rows_to_draw = 200
    leverage = estimate.leverages(c.unsqueeze(1), diagonal)[:, 0]
    assert float(leverage.sum()) / own.total == pytest.approx(5)  # one for each column
    sampled = [estimate.block(c, scale, leverage) for _ in range(300)]
    torch.testing.assert_close(torch.stack(sampled).mean(0), exact, atol=5e-3, rtol=0.05)
    assert not sampled[0].allclose(sampled[1])


def test_a_rare_column_is_drawn() -> None:
    """Three rows in 20,000 have column 3: by curvature alone they would hardly ever be drawn."""
    X, y, _ = generated(20_000)
    X = X.clone()
    X[:, 3] = 0
    X[[5, 7000, 15_000], 3] = 1
    own = Objective(inputs.as_samples(X, None, None), y, 3)
    for seed in range(5):
        estimate = estimated(own, seed)
        c = estimate.row_curvatures()
        drawn = estimate.draw(
            c, estimate.leverages(c.unsqueeze(1), estimate.diagonal(c.unsqueeze(1)))[:, 0]
        )
        assert {5, 7000, 15_000} <= set(drawn.rows.tolist())
        assert len(drawn.rows) == pytest.approx(estimate.rows_to_draw, rel=0.1)
        assert float(drawn.factor.sum()) == pytest.approx(1, rel=0.1)


def test_a_column_that_was_not_drawn_has_its_own_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The diagonal comes from all samples, so that the preconditioner scales the column right."""
    monkeypatch.setattr(preconditioner, "WHOLE_HESSIAN", 0)
    X, y, _ = generated(20_000)
    X = X.clone()
    X[:, 3] = 0
    X[[5, 7000, 15_000], 3] = 1
    own = Objective(inputs.as_samples(X, None, None), y, 3)
    estimate = estimated(own)
    h = estimate.diagonal(estimate.curvatures)[:, 3]
    monkeypatch.setattr(
        SampledHessian, "leverages", lambda self, c, diagonal: torch.where(X[:, 3:] > 0, 0, c)
    )
    monkeypatch.setattr(estimate, "w", torch.where(X[:, 3] > 0, 1e-30, 1.0).double())
    unit = torch.zeros(3, 5, dtype=torch.float64)
    unit[0, 3], unit[1, 3] = 1, -1
    for kind in (Blocks, Diagonal):
        monkeypatch.setattr(
            SampledHessian, "diagonal", lambda self, c: own.squares(estimated(own).curvatures)
        )
        got = kind(estimate).inverse(0.0)(unit)[:2, 3]
        assert got[0] == pytest.approx(float(1 / h[0]), rel=0.5)


@pytest.mark.parametrize("load", [load_digits, load_iris, load_wine])
@pytest.mark.parametrize("solver", ["lbfgs", "newton"])
def test_finds_the_optimum_of_scikit_learn(load: Any, solver: str) -> None:
    X, y = load(return_X_y=True)
    peer = LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(X, y)
    z = torch.from_numpy(X @ peer.coef_.T + peer.intercept_)
    F = float(torch.nn.functional.cross_entropy(z, torch.from_numpy(y)))
    F += (peer.coef_**2).sum() / 2 / len(y)
    ours = fit(X, y, solver=solver, tol=1e-9)
    assert abs(ours.objective - F) < 1e-8


def test_gradient_descent_converges() -> None:
    X, y, weight = generated()
    slow = fit(X, y, sample_weight=weight, solver="gradient_descent")
    quick = fit(X, y, sample_weight=weight)
    assert slow.iterations > quick.iterations
    assert slow.objective == pytest.approx(quick.objective, rel=2e-6)


@pytest.mark.filterwarnings("ignore:the fit ended")
@pytest.mark.parametrize("solver", SMOOTH)
def test_history_and_callback(solver: str) -> None:
    X, y, _ = generated()
    seen: list[Progress] = []

    def stop(now: Progress) -> bool:
        seen.append(now)
        return now.iteration == 2

    solution = fit(X, y, solver=solver, tol=1e-12, callback=stop)
    assert solution.history == seen
    assert [progress.iteration for progress in seen] == [1, 2]
    assert seen[0].objective >= seen[1].objective
    assert solution.iterations == 2
    assert 0 < seen[1].passes <= solution.passes


def test_max_iter_reached_first_is_a_warning() -> None:
    X, y, _ = generated()
    with pytest.warns(ConvergenceWarning, match=r"after 1 iterations at a relative duality gap of"):
        solution = fit(X, y, max_iter=1, tol=1e-12)
    assert not solution.converged


def test_warm_start_needs_fewer_iterations() -> None:
    X, y = load_digits(return_X_y=True)
    first = fit(X, y)
    assert fit(X, y, warm_start=first).iterations <= 1
    assert fit(X, y, C=1.1, warm_start=first).iterations < first.iterations


@pytest.mark.parametrize("solver", ["lbfgs", "newton"])
def test_last_digits_come_from_float64(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "SMALL", 0)  # as for data that are large
    X, y = load_digits(return_X_y=True)
    X = X / 16
    assert inputs.as_samples(X, None, None).dtype == torch.float32
    solution = fit(X, y, solver=solver, tol=1e-13)
    assert solution.converged
    assert solution.objective == pytest.approx(fit(X, y, tol=1e-13).objective, rel=1e-13)


@pytest.mark.parametrize("bias", [False, True])
def test_module_predicts_the_same(bias: bool) -> None:
    X, y, _ = generated()
    solution = fit(X, y, fit_intercept=bias)
    z = X @ solution.weight.T + solution.bias
    torch.testing.assert_close(solution.module().predict_proba(X.float()), z.softmax(1).float())


@pytest.mark.parametrize("solver", ["lbfgs", "newton"])
def test_order_and_repetition_do_not_change_the_solution(solver: str) -> None:
    """The order of samples and classes, and repeated samples instead of weights; to 1e-6."""
    X, y = load_iris(return_X_y=True)
    X, y = torch.from_numpy(X), torch.from_numpy(y)
    options: dict[str, Any] = {"solver": solver, "tol": 1e-13}
    base = fit(X, y, **options).weight
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    close: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-6}
    torch.testing.assert_close(fit(X[order], y[order], **options).weight, base, **close)
    renamed = fit(X, (y + 1) % 3, **options).weight
    torch.testing.assert_close(renamed[[1, 2, 0]], base, **close)
    counts = torch.tensor([1, 3, 2])
    repeated = fit(X.repeat_interleave(counts[y], 0), y.repeat_interleave(counts[y]), **options)
    for weights in ({"class_weight": [1, 3, 2]}, {"sample_weight": counts[y]}):
        torch.testing.assert_close(fit(X, y, **weights, **options).weight, repeated.weight, **close)
    heavy = fit(X, y, class_weight="balanced", sample_weight=counts[y].double(), **options)
    # iris has equally many samples of each class, so that the weight of each is 2
    balanced = fit(X, y, C=2.0, **options)
    torch.testing.assert_close(heavy.weight, balanced.weight, **close)
