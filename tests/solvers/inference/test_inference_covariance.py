"""Sandwich and cluster covariances, and those of a penalised fit, against peers and autograd."""

from typing import Any

import numpy as np
import pytest
import torch
from small_samples import small
from statsmodels.discrete.discrete_model import MNLogit
from torch import Tensor

from softmax_torch.solvers import Inference, inference

X, Y, GROUPS = small()
WITH_ONES = np.column_stack([X, np.ones(len(X))])
SEPARATED = X[:, 1] > 2


def peer(covariance: str, **options: Any) -> Any:
    kinds = {"cov_type": covariance} | ({"cov_kwds": options} if options else {})
    return MNLogit(Y, WITH_ONES).fit(method="newton", disp=0, tol=1e-13, **kinds)


@pytest.mark.parametrize("reference", [0, 2, None])
def test_hc0_equals_statsmodels(reference: int | None) -> None:
    found = inference(X, Y, covariance="HC0", reference=reference)
    expected = torch.tensor(np.asarray(peer("HC0").cov_params()))
    if reference == 0:
        torch.testing.assert_close(found.covariance, expected)
    whole = torch.zeros(3, 4, 3, 4, dtype=torch.float64)
    whole[1:, :, 1:] = expected.view(2, 4, 2, 4)
    contrast = torch.tensor([[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)
    theta = found.covariance_of_theta().view(3, 4, 3, 4)
    got = torch.einsum("ak,kplq,bl->apbq", contrast, theta, contrast)
    torch.testing.assert_close(got.reshape(8, 8), expected)


def test_hc1_is_hc0_for_few_samples() -> None:
    hc0, hc1 = (inference(X, Y, covariance=kind).covariance for kind in ("HC0", "HC1"))
    torch.testing.assert_close(hc1, hc0 * 300 / (300 - 8))


def test_cluster_equals_statsmodels() -> None:
    """Without its factor (n - 1) / (n - k), which ``vcovCL`` and Stata do not have."""
    found = inference(X, Y, covariance="cluster", groups=[f"group {g}" for g in GROUPS])
    expected = np.asarray(peer("cluster", groups=GROUPS).cov_params()) / (299 / 292)
    torch.testing.assert_close(found.covariance, torch.tensor(expected))
    assert found.groups == 30


def scores(found: Inference) -> Tensor:
    """The score of each sample, relative to class 0 (n, 8)."""
    x = torch.tensor(WITH_ONES)
    residual = torch.nn.functional.one_hot(torch.tensor(Y), 3) - (x @ found.theta.T).softmax(1)
    return (residual[:, 1:, None] * x[:, None]).flatten(1)


def test_weights_are_frequencies_unless_each_sample_is_a_group() -> None:
    w = torch.arange(300, dtype=torch.float64) % 3 + 0.5
    plain = inference(X, Y, sample_weight=w)
    s = scores(plain)
    for options, middle in (
        ({"covariance": "HC0"}, s.T @ (s * w[:, None])),
        ({"covariance": "cluster", "groups": range(300)}, s.T @ (s * w[:, None] ** 2) * 300 / 299),
    ):
        found = inference(X, Y, sample_weight=w, **options)  # type: ignore[arg-type]
        expected = plain.covariance @ middle @ plain.covariance
        torch.testing.assert_close(found.covariance, expected)


def test_samples_of_weight_0_are_of_no_group() -> None:
    kept = (GROUPS >= 5) & (GROUPS < 25)
    weighted = inference(X, Y, covariance="cluster", groups=GROUPS, sample_weight=kept)
    alone = inference(X[kept], Y[kept], covariance="cluster", groups=GROUPS[kept])
    assert weighted.groups == alone.groups == 20
    torch.testing.assert_close(weighted.covariance, alone.covariance)


@pytest.mark.parametrize("reference", [0, None])
def test_columns_far_from_0(reference: int | None) -> None:
    """The fit centres them; the covariance is that of X as given."""
    far, near = (inference(x, Y, reference=reference) for x in (X + [0, 100, 0], X))
    assert far.model.objective.offset is not None
    as_far = torch.eye(4, dtype=torch.float64)
    as_far[3, 1] = -100.0
    map = torch.kron(torch.eye(len(near.row_names), dtype=torch.float64), as_far)
    torch.testing.assert_close(far.covariance, map @ near.covariance @ map.T, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("reference", [0, None])
@pytest.mark.parametrize("intercept", [True, False])
def test_a_penalised_fit(reference: int | None, intercept: bool) -> None:
    """In the symmetric coding the covariance is H^+ J H^+, H with the penalty, by autograd."""
    C = 0.05
    x = torch.tensor(WITH_ONES if intercept else X)
    P = x.shape[1]
    found = inference(X, Y, penalty="l2", C=C, reference=reference, fit_intercept=intercept)

    def loss(theta: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(x @ theta.T, torch.tensor(Y), reduction="sum")

    def penalised(theta: Tensor) -> Tensor:
        return loss(theta) + theta[:, :3].square().sum() / (2 * C)

    theta = found.theta
    assert torch.func.grad(penalised)(theta).abs().max() < 1e-6
    assert found.log_likelihood == pytest.approx(-float(loss(theta)))
    H, J = (torch.func.hessian(f)(theta).view(3 * P, 3 * P) for f in (penalised, loss))
    centre = torch.kron(
        torch.eye(3, dtype=torch.float64) - 1 / 3, torch.eye(P, dtype=torch.float64)
    )
    inverse = torch.linalg.pinv(centre @ H @ centre)
    expected = inverse @ J @ inverse
    torch.testing.assert_close(found.covariance_of_theta(), expected, rtol=1e-6, atol=1e-12)
    assert found.parameters == pytest.approx(float(torch.trace(inverse @ J)))
    assert found.parameters < 2 * P


def test_a_penalised_fit_has_a_sandwich_of_its_own() -> None:
    """Its outer factors are (H + l2 M)^-1."""
    found = inference(X, Y, penalty="l2", C=0.05)
    robust = inference(X, Y, penalty="l2", C=0.05, covariance="HC0")
    x = torch.tensor(WITH_ONES)
    p = (x @ found.theta.T).softmax(1)[:, 1:]
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    H = torch.einsum("nkl,np,nq->kplq", curvature, x, x).reshape(8, 8)
    M = torch.eye(2, dtype=torch.float64) - 1 / 3
    H += torch.kron(M, torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0]).double())) / 0.05
    s = scores(found)
    expected = torch.linalg.inv(H) @ s.T @ s @ torch.linalg.inv(H)
    torch.testing.assert_close(robust.covariance, expected)


def test_a_weak_penalty_is_none() -> None:
    weak, none = inference(X, Y, penalty="l2", C=1e12), inference(X, Y)
    torch.testing.assert_close(weak.covariance, none.covariance)
    assert weak.parameters == pytest.approx(8)


def test_the_penalty_of_separated_classes() -> None:
    found = inference(X, SEPARATED, penalty="l2", C=1.0)
    assert found.standard_errors.isfinite().all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"covariance": "HC3"}, "covariance: expected nonrobust, HC0, HC1, cluster; got 'HC3'"),
        ({"covariance": "cluster"}, "a group for each sample .*, got None"),
        ({"groups": GROUPS}, "None without covariance=.cluster. and without bootstrap"),
        ({"covariance": "cluster", "groups": GROUPS[:9]}, r"shape \(300,\), a group .*got \(9,\)"),
        (
            {"covariance": "cluster", "groups": [0] * 300},
            "at least 2 groups, got all samples in one",
        ),
        (
            {"y": SEPARATED, "covariance": "cluster", "groups": GROUPS % 4},
            "more groups .*4 coef.*4,",
        ),
        (
            {"y": SEPARATED, "covariance": "HC1", "sample_weight": 0.01},
            "more samples than the 4 coef",
        ),
        ({"penalty": "l1"}, "penalty: expected none, l2.*; got 'l1'"),
        ({"penalty": "l2"}, "C: expected the inverse strength .*got None"),
        ({"C": 1.0}, "C: expected None, .*got 1.0"),
        ({"penalty": "l2", "C": 0}, "C: expected a number above 0"),
        (
            {"penalty": "l2", "C": 1e-310},
            "C: expected C times the sum .*at least 1e-30, got C=1e-310",
        ),
    ],
)
def test_refused_arguments(options: dict[str, Any], match: str) -> None:
    """All but the strength are refused before the fit, which would refuse separated classes."""
    with pytest.raises(ValueError, match=match):
        inference(**({"X": X, "y": Y} | options))
