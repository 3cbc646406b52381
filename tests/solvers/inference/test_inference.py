"""Standard errors, tests and intervals, against statsmodels and their definitions."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from softmax_torch.solvers import inference


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    X = X * torch.tensor([1.0, 10.0, 0.1]) + torch.tensor([0.0, 5.0, 1.0])
    z = X @ torch.randn(3, 4, generator=generator, dtype=torch.float64) / 3
    return X, torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)


@pytest.mark.filterwarnings("ignore")
def test_equals_statsmodels(data: tuple[Tensor, Tensor]) -> None:
    discrete = pytest.importorskip("statsmodels.discrete.discrete_model")
    X, y = data
    with_constant = np.column_stack([X.numpy(), np.ones(len(X))])
    peer = discrete.MNLogit(y.numpy(), with_constant).fit(method="newton", disp=0, tol=1e-12)
    ours = inference(X, y)
    for got, expected in (
        (ours.coefficients, peer.params.T),
        (ours.standard_errors, peer.bse.T),
        (ours.z_values, peer.tvalues.T),
        (ours.p_values, peer.pvalues.T),
        (ours.confidence_intervals, peer.conf_int().reshape(3, 4, 2)),
        (ours.covariance, peer.cov_params()),
    ):
        np.testing.assert_allclose(got.numpy(), np.asarray(expected), rtol=1e-6, atol=1e-8)
    assert ours.log_likelihood == pytest.approx(peer.llf, rel=1e-10)


def test_covariance_is_the_inverse_hessian_of_autograd(data: tuple[Tensor, Tensor]) -> None:
    X, y = data
    weight = torch.rand(len(y), dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 1
    ours = inference(X, y, sample_weight=weight, reference=2, fit_intercept=False)

    def loss(gamma: Tensor) -> Tensor:
        theta = torch.cat([gamma[:2], torch.zeros(1, 3, dtype=gamma.dtype), gamma[2:]])
        nll = torch.nn.functional.cross_entropy(X @ theta.T, y, reduction="none")
        return weight @ nll

    gamma = ours.coefficients
    H = torch.func.hessian(loss)(gamma).view(9, 9)
    torch.testing.assert_close(ours.covariance, torch.linalg.inv(H), rtol=1e-8, atol=1e-12)
    assert torch.func.grad(loss)(gamma).abs().max() < 1e-5
    assert ours.log_likelihood == pytest.approx(-float(loss(gamma)), rel=1e-10)


@pytest.mark.parametrize("reference", [1, 3, None])
def test_differences_do_not_depend_on_the_reference(
    reference: int | None, data: tuple[Tensor, Tensor]
) -> None:
    """Differences of two classes, and their standard errors, do not depend on the reference."""
    zero, other = inference(*data), inference(*data, reference=reference)
    P = 4
    if reference is None:
        contrast = torch.zeros(4 * P, dtype=torch.float64)
        contrast[2 * P], contrast[3 * P] = 1.0, -1.0  # class 2 against 3, first feature
        assert other.coefficients.sum(0).abs().max() < 1e-12
    else:
        kept = [k for k in range(4) if k != reference]
        contrast = torch.zeros(3 * P, dtype=torch.float64)
        for k, sign in ((2, 1.0), (3, -1.0)):
            if k in kept:
                contrast[kept.index(k) * P] = sign
    base = torch.zeros(3 * P, dtype=torch.float64)
    base[1 * P], base[2 * P] = 1.0, -1.0
    assert float(contrast @ other.coefficients.flatten()) == pytest.approx(
        float(base @ zero.coefficients.flatten()), rel=1e-6
    )
    assert float(contrast @ other.covariance @ contrast) == pytest.approx(
        float(base @ zero.covariance @ base), rel=1e-6
    )


def test_frequencies_are_repeated_samples(data: tuple[Tensor, Tensor]) -> None:
    X, y = data
    counts = torch.arange(len(y)) % 3
    weighted = inference(X, y, sample_weight=counts)
    repeated = inference(X.repeat_interleave(counts, 0), y.repeat_interleave(counts))
    torch.testing.assert_close(weighted.coefficients, repeated.coefficients)
    torch.testing.assert_close(weighted.standard_errors, repeated.standard_errors)


def test_intercepts_alone_have_a_closed_form() -> None:
    """With an uninformative feature, var(log n_k / n_0) is 1 / n_k + 1 / n_0."""
    y = torch.arange(3).repeat_interleave(torch.tensor([200, 100, 300]))
    X = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).repeat(300, 1)
    ours = inference(X, y)
    assert ours.coefficients[:, 1].tolist() == pytest.approx([math.log(0.5), math.log(1.5)])
    assert ours.coefficients[:, 0].abs().max() < 1e-8
    expected = [math.sqrt(1 / 100 + 1 / 200), math.sqrt(1 / 300 + 1 / 200)]
    assert ours.standard_errors[:, 1].tolist() == pytest.approx(expected)


def test_intervals_widen_with_confidence(data: tuple[Tensor, Tensor]) -> None:
    ours = inference(*data, confidence=0.6826894921370859)
    low, high = ours.confidence_intervals.unbind(2)
    torch.testing.assert_close(high - ours.coefficients, ours.standard_errors)
    torch.testing.assert_close(ours.coefficients - low, ours.standard_errors)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_forms_of_data(data: tuple[Tensor, Tensor]) -> None:
    X, y = data
    expected = inference(X, y).standard_errors
    for form in ([X[:100].numpy(), X[100:].numpy()], X.to_sparse_csr()):
        torch.testing.assert_close(inference(form, y).standard_errors, expected)


def collinear(X: Tensor) -> Tensor:
    return torch.cat([X, 2 * X[:, :1] - X[:, 2:3]], 1)


def complementary(X: Tensor) -> Tensor:
    dummy = (X[:, :1] > 0).double()
    return torch.cat([X, dummy, 1 - dummy], 1)


def far(X: Tensor, constant: float) -> Tensor:
    """Columns that the fit centres, of which one is the sum of two others and a constant."""
    X = X + torch.tensor([0.0, 1000.0, 0.0])
    return torch.cat([X, X[:, :1] + X[:, 1:2] + constant], 1)


HALF = torch.arange(400) % 2  # weights


@pytest.mark.parametrize(
    ("change", "options", "match"),
    [
        (complementary, {}, r"\(column 3, column 4, the intercept are involved"),
        (lambda X: far(X, 0.0), {}, r"\(column 0, column 1, column 3 are involved"),
        (lambda X: far(X, 50.0), {}, r"column 1, column 3, the intercept are involved"),
        (
            lambda X: torch.cat([X, 1.0 - HALF.unsqueeze(1)], 1),
            {"sample_weight": HALF},
            "not all 0, got zeros in column 3; drop",
        ),
        (collinear, {}, r"of others \(column 0, column 2, column 3 are involved\); drop"),
        (lambda X: X * 0 + 1, {}, "others .*the intercept are involved.; drop"),
        (lambda X: X * torch.tensor([1.0, 0, 1]), {}, "not all 0, got zeros in column 1; drop"),
        (lambda X: X, {"reference": 4}, r"a class in \[0, 4\) or None, got 4"),
        (lambda X: X, {"confidence": 1.0}, r"confidence: .* in \(0, 1\), got 1.0"),
    ],
)
def test_refused_arguments(
    change: Any, options: dict[str, Any], match: str, data: tuple[Tensor, Tensor]
) -> None:
    X, y = data
    with pytest.raises(ValueError, match=match):
        inference(change(X), y, **options)


def test_separable_classes_have_no_errors() -> None:
    X = torch.linspace(-1, 1, 30, dtype=torch.float64).unsqueeze(1)
    with pytest.raises(ValueError, match="column 0 separates class 0 from class 1"):
        inference(X, (X[:, 0] > 0).long())
