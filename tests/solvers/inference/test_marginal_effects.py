"""Marginal effects against Stata's, statsmodels', autograd's and their definition."""

import doctest
import math
from typing import Any

import numpy as np
import pytest
import torch
from reference_values import problem, stata
from scipy import sparse
from statsmodels.discrete.discrete_model import MNLogit
from torch import Tensor

from softmax_torch.solvers import Inference, inference
from softmax_torch.solvers.inference import marginal_effects as module
from softmax_torch.solvers.problem import objective_of

CLUSTERED = problem("clustered")
SPECTOR = problem("spector")
AT_VALUES = {"atexog1": ("average", {"GPA": 2, "PSI": 1}), "atexog2": ("mean", {"TUCE": 21, 2: 0})}


def fitted(name: str, **options: Any) -> Inference:
    made = problem(name)
    return inference(made.X, made.y, feature_names=made.features, **options)


def check(got: Tensor, expected: Any, rtol: float = 1e-6, atol: float = 1e-7) -> None:
    np.testing.assert_allclose(got.numpy(), np.asarray(expected), rtol=rtol, atol=atol)


def test_example() -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize(("at", "name"), [("average", "overall"), ("mean", "mean")])
def test_equals_stata_for_seven_classes(at: Any, name: str) -> None:
    expected = stata("anes96")
    found = fitted("anes96", reference=None).marginal_effects(at)
    assert found.dummies == ()
    check(found.effects, expected[f"margeff_dydx_{name}"], atol=2e-7)
    check(found.standard_errors, expected[f"margeff_dydx_{name}_se"], atol=2e-9)


@pytest.mark.parametrize(("dummies", "name"), [("none", "nodummy"), ("auto", "dummy")])
@pytest.mark.parametrize("at", ["dydx", "dydxmean", "atexog1", "atexog2"])
def test_equals_stata_for_two_classes_and_a_dummy(dummies: Any, name: str, at: str) -> None:
    given, values = AT_VALUES.get(at, ("mean" if at == "dydxmean" else "average", None))
    found = fitted("spector").marginal_effects(given, values=values, dummies=dummies)  # type: ignore[arg-type]
    assert found.dummies == (("PSI",) if dummies == "auto" else ())
    check(found.effects[1], stata("spector")[f"margeff_{name}_{at}"])
    check(found.standard_errors[1], stata("spector")[f"margeff_{name}_{at}_se"])
    check(found.effects[0], -found.effects[1])


@pytest.mark.parametrize("at", ["average", "mean"])
@pytest.mark.parametrize("dummies", ["none", "auto"])
def test_equals_statsmodels_with_a_sandwich(at: Any, dummies: Any) -> None:
    with_ones = np.column_stack([CLUSTERED.X, np.ones(300)])
    peer = MNLogit(CLUSTERED.y, with_ones).fit(method="newton", disp=0, tol=1e-13, cov_type="HC0")
    expected = peer.get_margeff(
        at="overall" if at == "average" else "mean", dummy=dummies == "auto"
    )
    found = fitted("clustered", covariance="HC0").marginal_effects(at, dummies=dummies)
    check(found.effects, expected.margeff.T, 1e-8, 1e-9)
    check(found.standard_errors, expected.margeff_se.T, 1e-7, 1e-9)
    check(found.z_values, expected.tvalues.T)
    check(found.p_values, expected.pvalues.T)
    intervals = np.stack([expected.conf_int()[:, 0], expected.conf_int()[:, 1]])
    check(found.confidence_intervals.permute(2, 1, 0), intervals)


def effects_by_definition(theta: Tensor, X: Tensor, w: Tensor, dummies: list[int]) -> Tensor:
    """The weighted mean (K, D) of dp_k / dx_j, and of the differences of dummies."""

    def p(x: Tensor) -> Tensor:
        bias = theta[:, -1] if theta.shape[1] > x.shape[1] else 0.0
        return (x @ theta[:, : x.shape[1]].T + bias).softmax(1)

    x = X.clone().requires_grad_()
    columns = [
        torch.autograd.grad(p(x)[:, k].sum(), x, create_graph=True)[0] for k in range(len(theta))
    ]
    slopes = torch.stack(columns)  # (K, n, D)
    effects = list(torch.einsum("n,knd->dk", w / w.sum(), slopes))
    for j in dummies:
        on, off = X.clone(), X.clone()
        on[:, j], off[:, j] = 1.0, 0.0
        effects[j] = (w / w.sum()) @ (p(on) - p(off))
    return torch.stack(effects, 1)


def data(K: int, D: int, n: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, D, generator=generator, dtype=torch.float64)
    X[:, -1] = (X[:, -1] > 0).double()
    X[:, 0] += 30.0  # so far from 0 that the fit centres it
    y = torch.arange(n) % K
    return X, y, torch.rand(n, generator=generator, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("at", ["average", "mean"])
@pytest.mark.parametrize("reference", [0, None])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("K", "D"), [(3, 4), (5, 2)])  # sums with probabilities, and with [u, 1]
def test_errors_are_those_of_autograds_jacobian(
    K: int, D: int, fit_intercept: bool, reference: Any, at: Any
) -> None:
    X, y, w = data(K, D)
    fit = inference(X, y, sample_weight=w, fit_intercept=fit_intercept, reference=reference)
    if at == "mean":
        X, w = (w @ X / w.sum()).unsqueeze(0), torch.ones(1, dtype=torch.float64)
    found = fit.marginal_effects(at)
    assert found.dummies == (f"x{D - 1}",)
    args = X, w, [D - 1]
    check(found.effects, effects_by_definition(fit.theta, *args).detach(), 1e-9, 1e-12)
    J = torch.autograd.functional.jacobian(lambda t: effects_by_definition(t, *args), fit.theta)
    J = J.reshape(K * D, -1)
    variance = (J @ fit.covariance_of_theta() @ J.T).diagonal()
    check(found.standard_errors, variance.sqrt().view(K, D), 1e-8, 1e-12)
    assert found.effects.sum(0).abs().max() < 1e-15


def test_weights_are_frequencies() -> None:
    X, y, _ = data(3, 3)
    counts = torch.randint(3, y.shape, generator=torch.Generator().manual_seed(1))
    X[int(counts.argmin()), -1] = 7.0  # of weight 0: the others are still a dummy
    a = inference(X, y, sample_weight=counts).marginal_effects()
    b = inference(X.repeat_interleave(counts, 0), y.repeat_interleave(counts)).marginal_effects()
    check(a.effects, b.effects, 1e-8)
    check(a.standard_errors, b.standard_errors, 1e-8)
    assert a.dummies == b.dummies == ("x2",)


@pytest.mark.parametrize("at", ["average", "mean"])
def test_forms_of_data(at: Any) -> None:
    X, y = CLUSTERED.X, CLUSTERED.y
    expected = inference(X, y).marginal_effects(at, values={1: 0.5})
    assert expected.dummies == ("x2",)
    for form in (sparse.csr_array(X), [X[:100], X[100:]], torch.tensor(X, dtype=torch.float32)):
        found = inference(form, y).marginal_effects(at, values={1: 0.5})
        check(found.effects, expected.effects)
        check(found.standard_errors, expected.standard_errors)
        assert found.dummies == expected.dummies


def test_digits_hold_where_probabilities_are_near_0_and_1() -> None:
    """For two classes at one row, dp/dx = p (1 - p) w, and its derivative by the logit is known."""
    objective = objective_of([[1.0], [2.0]], [0, 1], False, None, None, None, None)
    theta = torch.tensor([[0.0], [50.0]], dtype=torch.float64)
    V = torch.tensor([[0.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    found = module.marginal_effects(objective, theta, V, ("x",), ("a", "b"), values={"x": 1.0})
    small = math.exp(-50.0) / (1 + math.exp(-50.0)) ** 2  # p (1 - p)
    check(found.effects[:, 0], [-50 * small, 50 * small], 1e-13, 0)
    slope = small * (1 - 50)  # d/dw of p (1 - p) w for p near 1
    check(found.standard_errors[:, 0], [2 * abs(slope)] * 2, 1e-13, 0)


def test_a_value_for_each_feature_is_the_effect_at_that_row() -> None:
    fit = fitted("spector")
    row = {"GPA": 3.0, "TUCE": 20.0, "PSI": 1.0}
    a, b = (fit.marginal_effects(at, values=row, dummies="none") for at in ("average", "mean"))  # type: ignore[arg-type]
    check(a.effects, b.effects, 1e-12)
    check(a.standard_errors, b.standard_errors, 1e-12)
    p = fit.predict_proba([list(row.values())])[0, 1]
    check(a.effects[1], p * (1 - p) * fit.coefficients[0, :3], 1e-12)
    assert a.values == row


def test_values_are_not_written_into_the_samples() -> None:
    X, y, _ = data(3, 3)
    given = X.clone()
    inference(X, y, fit_intercept=False).marginal_effects(values={1: 5.0})
    assert torch.equal(X, given)


def test_dummies_by_name() -> None:
    fit = fitted("spector")
    check(
        fit.marginal_effects(dummies=["PSI"]).effects, fit.marginal_effects(dummies=[2]).effects, 0
    )
    assert fit.marginal_effects(dummies=[]).dummies == ()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"at": "median"}, ValueError, "at: expected average or mean, got 'median'"),
        ({"dummies": "all"}, ValueError, "dummies: expected auto, none or .*, got 'all'"),
        ({"dummies": ["psi"]}, ValueError, r"dummies: .*GPA, TUCE, PSI.* \[0, 3\), got 'psi'"),
        ({"dummies": None}, ValueError, r"dummies: .* \[0, 3\), got None"),
        ({"dummies": ["GPA"]}, ValueError, "dummies: .* zeros and ones, got 32 other .* in GPA"),
        ({"values": {"GPA": math.nan}}, ValueError, "values: expected finite .*'GPA': nan"),
        ({"values": {"gpa": 1.0}}, ValueError, "values: expected names .* got 'gpa'"),
        ({"values": {"GPA": "a"}}, TypeError, r"values\['GPA'\]: expected a number"),
        ({"values": [1.0]}, TypeError, "values: expected a mapping .*, got list"),
        ({"confidence": 1.5}, ValueError, r"confidence: .* in \(0, 1\), got 1.5"),
    ],
)
def test_refused_arguments(options: dict[str, Any], error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        fitted("spector").marginal_effects(**options)


def test_tables() -> None:
    found = fitted("spector", confidence=0.9).marginal_effects(values={"TUCE": 21})
    assert found.confidence == 0.9
    text = str(found)
    assert "Marginal effects on class probabilities" in text
    assert "Effects of a change from 0 to 1: PSI." in text
    line = next(line for line in text.splitlines() if line.startswith("Effects at"))
    assert "average of the samples" in line
    assert line.split()[-4:] == ["Value", "of", "TUCE", "21"]
    row = [line.split() for line in text.splitlines() if line.startswith("PSI")][1]
    low, high = found.confidence_intervals[1, 2].tolist()
    assert row[1:3] == [f"{t[1, 2]:.4f}" for t in (found.effects, found.standard_errors)]
    assert row[-2:] == [f"{low:.4f}", f"{high:.4f}"]
    assert "[0.05" in text
    assert found.to_markdown().count("| PSI |") == 2
    assert found._repr_html_().count('<th scope="row">PSI</th>') == 2


def test_frame() -> None:
    pytest.importorskip("pandas")
    found = fitted("spector").marginal_effects()
    frame = found.to_frame()
    assert frame.shape == (6, 6)
    assert frame.loc[("1", "GPA"), "effect"] == float(found.effects[1, 0])
    assert frame.loc[("0", "PSI"), "upper"] == float(found.confidence_intervals[0, 2, 1])
