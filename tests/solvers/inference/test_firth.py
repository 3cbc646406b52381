"""Firth's bias-reduced fit, against R's brglm2, its definition and tables with exact answers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from jeffreys import intercepts, maximum, penalised
from reference_values import problem, values
from torch import Tensor

from softmax_torch.solvers import inference
from softmax_torch.solvers.fit import ConvergenceWarning
from softmax_torch.solvers.inference import constrained_maximum, firth
from softmax_torch.solvers.problem import objective_of


def drawn(K: int, n: int = 40, D: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return X (n, D), y with samples of every class, and weights."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, D, generator=generator, dtype=torch.float64)
    y = torch.randint(K, (n,), generator=generator)
    y[:K] = torch.arange(K)
    return X, y, torch.rand(n, generator=generator, dtype=torch.float64) * 6 + 0.3


def separated() -> tuple[Tensor, Tensor]:
    """Return 3 classes: a dummy of five samples is 1 in class 2 alone, which has 2 others."""
    X, y, _ = drawn(2, n=30)
    dummy = torch.zeros(30, 1, dtype=torch.float64)
    dummy[20:25] = 1.0
    y[20:27] = 2
    return torch.cat([X, dummy], 1), y


@pytest.mark.parametrize("name", ["spector", "clustered", "separated2", "separated3"])
def test_equals_brglm2(name: str) -> None:
    (X, y, *_), expected = problem(name), values(name)["firth"]
    ours = inference(X, y, penalty="firth")
    np.testing.assert_allclose(ours.coefficients, expected["coefficients"], rtol=1e-7)
    np.testing.assert_allclose(ours.standard_errors, expected["standard_errors"], rtol=1e-8)
    np.testing.assert_allclose(ours.covariance, expected["covariance"], rtol=1e-8, atol=1e-10)
    assert ours.log_likelihood == pytest.approx(expected["log_likelihood"], rel=1e-9)
    likelihood = firth.Likelihood(ours.model.objective, jeffreys=True)
    value = likelihood.evaluate(likelihood.gamma_of(ours.model.theta)).value
    assert value == pytest.approx(expected["penalised_log_likelihood"], rel=1e-12)


@pytest.mark.parametrize("K", [2, 3, 4])
@pytest.mark.parametrize(("intercept", "weighted"), [(True, False), (True, True), (False, True)])
def test_value_and_score_are_those_of_the_definition(
    K: int, intercept: bool, weighted: bool
) -> None:
    X, y, weight = drawn(K)
    w = weight if weighted else None
    objective = objective_of(X, y, intercept, w, None, None, None)
    likelihood = firth.Likelihood(objective, jeffreys=True)
    generator = torch.Generator().manual_seed(1)
    gamma = torch.randn(likelihood.size, dtype=torch.float64, generator=generator)
    gamma.requires_grad_()
    value = penalised(gamma, intercepts(X) if intercept else X, y, w)
    (gradient,) = torch.autograd.grad(value, gamma)
    at = likelihood.evaluate(gamma.detach())
    assert at.value == pytest.approx(value.item(), rel=1e-13)
    score = likelihood.score(gamma.detach(), at.inverse)
    torch.testing.assert_close(score, gradient, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("K", [2, 3, 4])
@pytest.mark.parametrize(("intercept", "weighted"), [(True, False), (False, True)])
def test_finds_the_maximum_of_the_definition(K: int, intercept: bool, weighted: bool) -> None:
    X, y, weight = drawn(K)
    w = weight if weighted else None
    columns = intercepts(X) if intercept else X
    size = (K - 1) * columns.shape[1]
    expected, _ = maximum(lambda gamma: penalised(gamma, columns, y, w), size)
    ours = inference(X, y, penalty="firth", fit_intercept=intercept, sample_weight=w)
    np.testing.assert_allclose(ours.coefficients.flatten(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "counts",
    [
        [[9, 3], [2, 8]],
        [[0, 5], [7, 1]],  # separated
        [[6, 0], [0, 6]],
        [[3, 4, 1], [5, 2, 9]],
        [[0, 4, 1, 6], [5, 0, 0, 1]],
    ],
)
def test_a_table_gets_half_a_sample_in_each_cell(counts: list[list[int]]) -> None:
    """A row of a table is a multinomial: Jeffreys' prior multiplies by prod_k p_k^(1/2)."""
    table = torch.tensor(counts)
    K = table.shape[1]
    x = torch.arange(2.0).repeat_interleave(K)
    y = torch.arange(K).repeat(2)
    n = table.flatten()
    ours = inference(x.repeat_interleave(n).unsqueeze(1), y.repeat_interleave(n), penalty="firth")
    logits = (table.double() + 0.5).log()
    logits = logits - logits[:, :1]
    expected = torch.stack([logits[1] - logits[0], logits[0]], 1)[1:]
    torch.testing.assert_close(ours.coefficients, expected, rtol=1e-9, atol=1e-9)


def test_intercepts_alone_get_half_a_sample_each() -> None:
    counts = torch.tensor([7, 1, 4, 2, 1])
    y = torch.arange(5).repeat_interleave(counts)
    ours = inference(torch.ones(len(y), 1), y, penalty="firth", fit_intercept=False)
    expected = ((counts.double() + 0.5) / 7.5).log()[1:]
    torch.testing.assert_close(ours.coefficients[:, 0], expected, rtol=1e-9, atol=1e-9)


def test_does_not_depend_on_the_order_of_classes_and_the_units() -> None:
    X, y, weight = drawn(3)
    options: dict[str, Any] = {"penalty": "firth", "sample_weight": weight}
    ours, order = inference(X, y, **options), torch.tensor([2, 0, 1])
    permuted = inference(X, order[y], **options)
    torch.testing.assert_close(permuted.theta[order], ours.theta, rtol=1e-8, atol=1e-8)
    unit, origin = torch.tensor([1e6, 1e-5]).double(), torch.tensor([0.0, 300.0])
    rescaled = inference(X * unit + origin, y, **options)  # the second column is centred
    torch.testing.assert_close(rescaled.theta[:, :2] * unit, ours.theta[:, :2], rtol=1e-5, atol=0)
    at_mean = rescaled.theta[:, 2] + rescaled.theta[:, :2] @ origin.double()
    torch.testing.assert_close(at_mean, ours.theta[:, 2], rtol=1e-5, atol=1e-5)


def test_frequencies_are_repeated_samples() -> None:
    X, y, _ = drawn(3)
    counts = 1 + torch.arange(len(y)) % 3
    weighted = inference(X, y, sample_weight=counts, penalty="firth")
    repeated = inference(
        X.repeat_interleave(counts, 0), y.repeat_interleave(counts), penalty="firth"
    )
    torch.testing.assert_close(weighted.coefficients, repeated.coefficients, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(weighted.covariance, repeated.covariance, rtol=1e-8, atol=1e-9)


def test_separated_classes_have_finite_estimates() -> None:
    X, y = separated()
    with pytest.raises(ValueError, match=r"column 2 separates .*penalty=.firth."):
        inference(X, y)
    ours = inference(X, y, penalty="firth")
    columns = intercepts(X)
    expected, _ = maximum(lambda gamma: penalised(gamma, columns, y), 8)
    np.testing.assert_allclose(ours.coefficients.flatten(), expected, rtol=1e-5, atol=1e-6)
    assert ours.coefficients[1, 2] > 2
    assert ours.standard_errors.isfinite().all()


@pytest.mark.parametrize(
    ("n", "D", "classes"),
    [
        (30, 2, [0] * 14 + [1] + [2] * 15),  # a class of one sample
        (12, 10, [0, 1, 2] * 4),  # hardly more rows than columns
        (11, 10, [0, 1] * 5 + [0]),  # as many rows as coefficients
    ],
)
def test_data_that_hardly_determine_the_coefficients(n: int, D: int, classes: list[int]) -> None:
    X, y = drawn(2, n, D)[0], torch.tensor(classes)
    ours = inference(X, y, penalty="firth")
    likelihood = firth.Likelihood(ours.model.objective, jeffreys=True)
    gamma = likelihood.gamma_of(ours.model.theta)
    at = likelihood.evaluate(gamma)
    score = likelihood.score(gamma, at.inverse)
    assert float(score @ at.inverse @ score) < 4e-18
    assert at.value > likelihood.evaluate(0 * gamma).value


def test_a_singular_information_is_minus_infinity() -> None:
    X, y, _ = drawn(2)
    likelihood = firth.Likelihood(objective_of(X, y, True, None, None, None, None), jeffreys=True)
    far = torch.tensor([1e4, 1e4, 0.0], dtype=torch.float64)
    assert likelihood.evaluate(far).value == -math.inf
    with pytest.raises(ValueError, match="singular up to rounding where the fit starts"):
        constrained_maximum.maximum(likelihood, far)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_forms_of_data() -> None:
    X, y, _ = drawn(3)
    X[X.abs() < 0.5] = 0.0
    expected = inference(X, y, penalty="firth").coefficients
    for form in ([X[:7].numpy(), X[7:].numpy()], X.to_sparse_csr()):
        found = inference(form, y, penalty="firth").coefficients
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_data_that_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, weight = drawn(4)
    options: dict[str, Any] = {"penalty": "firth", "sample_weight": weight}
    expected = inference(X, y, **options)
    monkeypatch.setattr(firth, "KEPT_NUMBERS", 0)
    monkeypatch.setattr(firth, "NUMBERS_AT_A_TIME", 130)  # 7 rows of 6 pairs and 3 columns
    found = inference(X, y, **options)
    torch.testing.assert_close(found.coefficients, expected.coefficients, rtol=1e-8, atol=1e-9)
    assert found.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-9)


def test_every_resample_of_separated_data_has_an_optimum() -> None:
    """Resamples without samples of class 1 too, which the data has one of."""
    X, _, _ = drawn(2, n=20)
    y = torch.zeros(20, dtype=torch.int64)
    y[0], y[10:] = 1, 2
    boot = inference(X, y, penalty="firth", bootstrap=12).bootstrap
    assert boot is not None
    assert boot.failed == 0
    assert boot.draws.isfinite().all()
    assert boot.standard_errors.min() > 0


def test_a_fit_that_does_not_converge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constrained_maximum, "MAX_ITER", 2)
    with pytest.warns(ConvergenceWarning, match=r"at most 1e-05 .*got .* after 2 iterations"):
        inference(*separated(), penalty="firth")


@pytest.mark.parametrize(
    ("change", "options", "match"),
    [
        (lambda X: torch.cat([X, X[:, :1]], 1), {}, "column 0, column 2 are involved"),
        (lambda X: X, {"C": 1.0}, 'C: expected None, as only penalty="l2"'),
        (lambda X: X.repeat(1, 30), {}, "expected at least as many samples"),
    ],
)
def test_refused_arguments(change: Any, options: dict[str, Any], match: str) -> None:
    X, y, _ = drawn(3)
    with pytest.raises(ValueError, match=match):
        inference(change(X), y, penalty="firth", **options)


@pytest.mark.slow
def test_the_bias_of_small_samples_is_gone() -> None:
    """Means of estimates in units of their standard deviation; ML's without separated data."""
    generator = torch.Generator().manual_seed(0)
    gamma = torch.tensor([[1.5, -1.0, 0.5], [-1.0, 1.0, 0.0]]).double()
    X = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    p = torch.nn.functional.pad(intercepts(X) @ gamma.T, (1, 0)).softmax(1)
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    for _ in range(250):
        y = torch.multinomial(p, 1, generator=generator).squeeze(1)
        objective = objective_of(X, y, True, None, None, None, None)
        for jeffreys, estimates in found.items():
            likelihood = firth.Likelihood(objective, jeffreys)
            best = constrained_maximum.maximum(likelihood, torch.zeros(6).double(), tol=1e-3)
            if best.gamma.abs().max() < 10:  # ML's grow without bound on separated data
                estimates.append(best.gamma)
    reduced, plain = (torch.stack(found[jeffreys]) for jeffreys in (True, False))
    assert len(reduced) == 250
    assert len(plain) > 200
    bias, ml_bias = ((each.mean(0) - gamma.flatten()) / reduced.std(0) for each in (reduced, plain))
    assert bias.abs().max() < 3 / 250**0.5
    assert ml_bias.norm() > 3 * bias.norm()
