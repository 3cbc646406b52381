"""Laplace approximations are inverse Hessians, and their probabilities integrals over them."""

import doctest
import math
from typing import Any

import pytest
import torch
from laplace_problems import logits, problem
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from softmax_torch import laplace
from softmax_torch.laplace import Structure, fit

STRUCTURES = pytest.mark.parametrize("structure", laplace.STRUCTURES)


def by_autograd(
    x: Tensor, weight: Tensor, bias: Tensor | None, tau: float, w: Tensor, at: Tensor
) -> Tensor:
    """Return the covariance (n, C, C) of centred logits from an explicit inverse Hessian.

    Its parameters are W and, with a bias, the logit at the weighted mean of x; the prior is on
    both. They are centred over the classes only in the end.
    """
    C, D = weight.shape
    mean = w @ x / w.sum() if bias is not None else torch.zeros(D, dtype=x.dtype)
    ones = [] if bias is None else [torch.ones(len(x), 1, dtype=x.dtype)]
    phi = torch.cat([x - mean, *ones], 1)
    theta = weight if bias is None else torch.cat([weight, (bias + weight @ mean)[:, None]], 1)
    y = torch.arange(len(x)) % C  # the Hessian does not depend on y

    def objective(flat: Tensor) -> Tensor:
        t = flat.view_as(theta)
        return w @ F.cross_entropy(phi @ t.T, y, reduction="none") + tau / 2 * t.square().sum()

    hessian: Tensor = torch.autograd.functional.hessian(objective, theta.flatten())
    covariance = hessian.inverse().view(*theta.shape, *theta.shape)
    new = torch.cat([at - mean, *([] if bias is None else [torch.ones(len(at), 1).to(at)])], 1)
    S = torch.einsum("np,kplq,nq->nkl", new, covariance, new)
    centring = torch.eye(C, dtype=x.dtype) - 1 / C
    return centring @ S @ centring


def test_the_example_of_the_module() -> None:
    assert doctest.testmod(laplace).failed == 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("C", [2, 4])
def test_the_full_posterior_is_the_inverse_hessian(C: int, bias: bool) -> None:
    x, weight, b = problem(C=C, bias=bias)
    w = torch.linspace(0, 3, len(x), dtype=torch.float64)
    at = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    batches = zip(x.split([13, 1, 46]), w.split([13, 1, 46]), strict=True)
    got = fit(batches, weight, b, prior_precision=0.7, structure="full")
    torch.testing.assert_close(got.covariance(at), by_autograd(x, weight, b, 0.7, w, at))


@pytest.mark.parametrize("bias", [True, False])
def test_kronecker_is_exact_where_all_samples_have_equal_probabilities(bias: bool) -> None:
    """At W = 0 H is a Kronecker product plus a multiple of the identity."""
    x, weight, b = problem(bias=bias)
    weight = 0 * weight  # the biases stay: unequal probabilities, the same for all samples
    w = torch.linspace(0, 3, len(x), dtype=torch.float64)
    batches = zip(x.split([13, 1, 46]), w.split([13, 1, 46]), strict=True)
    got = fit(batches, weight, b, prior_precision=0.7).covariance(x)
    torch.testing.assert_close(got, by_autograd(x, weight, b, 0.7, w, x))


def test_kronecker_is_near_the_full_posterior() -> None:
    x, weight, b = problem(n=500)
    kronecker, full = (fit(x, weight / 4, b, structure=s).covariance(x) for s in laplace.STRUCTURES)
    assert (kronecker - full).norm() < 0.25 * full.norm()
    traces = (S.diagonal(dim1=1, dim2=2).mean().item() for S in (kronecker, full))
    assert next(traces) == pytest.approx(next(traces), rel=0.1)


@STRUCTURES
def test_variances_are_the_diagonal_of_the_covariance(structure: Structure) -> None:
    x, weight, b = problem()
    posterior = fit(x, weight, b, structure=structure)
    expected = posterior.covariance(x).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(posterior.variances(x), expected)


@STRUCTURES
def test_draws_have_the_covariance(structure: Structure) -> None:
    """Second moments of n draws of a normal have the variance (S_cc S_dd + S_cd^2) / n."""
    x, weight, b = problem(n=20)
    posterior = fit(x, weight, b, structure=structure)
    n = 100_000
    e = posterior.sampler(n, torch.Generator().manual_seed(0))(x[:2])
    S = posterior.covariance(x[:2])
    d = S.diagonal(dim1=1, dim2=2)
    error = ((d[:, :, None] * d[:, None] + S.square()) / n).sqrt()
    assert ((e.mT @ e / n - S).abs() < 4.5 * error).all()
    assert (e.mean(1).abs() < 4.5 * (d / n).sqrt()).all()


@STRUCTURES
def test_probit_of_two_classes_is_the_binary_formula(structure: Structure) -> None:
    x, weight, b = problem(C=2)
    posterior = fit(x, weight, b, structure=structure)
    z, S = logits(x, weight, b), posterior.covariance(x)
    d = z[:, 1] - z[:, 0]
    variance = S[:, 0, 0] + S[:, 1, 1] - 2 * S[:, 0, 1]
    expected = torch.sigmoid(d / (1 + math.pi / 8 * variance).sqrt())
    torch.testing.assert_close(posterior.predict_proba(z, x)[:, 1], expected)


def test_probit_of_several_classes_divides_differences_to_the_first() -> None:
    x, weight, b = problem(n=5)
    posterior = fit(x, weight, b)
    z, S = logits(x, weight, b), posterior.covariance(x)
    for z_i, S_i, p_i in zip(z, S, posterior.predict_proba(z, x), strict=True):
        t = int(z_i.argmax())
        # The variance of z_c minus the mean of the three other logits.
        contrasts = (4 * torch.eye(4).double() - 1) / 3
        u = (contrasts @ S_i @ contrasts.T).diagonal()
        d = (z_i - z_i[t]) / (1 + math.pi / 8 * (u + u[t]) / 2).sqrt()
        torch.testing.assert_close(p_i, d.softmax(0))


@pytest.mark.parametrize(("C", "bound"), [(2, 0.012), (3, 0.015), (10, 0.03)])
def test_probit_is_near_the_mean_over_many_draws(C: int, bound: float) -> None:
    """5,000 draws have a standard error of at most 0.007 in each probability."""
    x, weight, b = problem(n=100, C=C)
    posterior = fit(x, weight, b, prior_precision=0.5)
    z = logits(x, weight, b)
    sampled = posterior.predict_proba(z, x, "sampling", draws=5000)
    off = (posterior.predict_proba(z, x) - sampled).abs().sum(1) / 2
    off_of_map = (z.softmax(1) - sampled).abs().sum(1) / 2
    assert off.mean() < bound
    assert off.mean() < off_of_map.mean() / 1.5


@STRUCTURES
@pytest.mark.parametrize("method", laplace.METHODS)
def test_a_vector_added_to_all_classes_changes_nothing(
    structure: Structure, method: laplace.Method
) -> None:
    x, weight, b = problem()
    assert b is not None
    moved = weight + torch.tensor([30.0, -5, 1]), b + 7

    def predicted(weight: Tensor, bias: Tensor) -> Tensor:
        posterior = fit(x, weight, bias, structure=structure)
        return posterior.predict_proba(logits(x, weight, bias), x, method)

    torch.testing.assert_close(predicted(*moved), predicted(weight, b))


@STRUCTURES
def test_the_origin_of_the_features_does_not_matter(structure: Structure) -> None:
    x, weight, b = problem()
    assert b is not None
    far = 1e5
    here = fit(x, weight, b, structure=structure)
    there = fit(x + far, weight, b - far * weight.sum(1), structure=structure)
    torch.testing.assert_close(there.covariance(x + far), here.covariance(x), rtol=1e-7, atol=1e-9)


@STRUCTURES
@pytest.mark.parametrize("method", laplace.METHODS)
def test_an_infinite_prior_precision_gives_the_probabilities_of_the_fit(
    structure: Structure, method: laplace.Method
) -> None:
    x, weight, b = problem()
    posterior = fit(x, weight, b, structure=structure, prior_precision=1e14)
    z = logits(x, weight, b)
    torch.testing.assert_close(
        posterior.predict_proba(z, x, method), z.softmax(1), rtol=1e-5, atol=1e-6
    )


@STRUCTURES
def test_more_samples_narrow_the_posterior(structure: Structure) -> None:
    """100 times the samples have a hundredth of the variance, where the prior hardly counts."""
    x, weight, b = problem()
    few, many = (
        fit([x] * times, weight / 3, b, structure=structure, prior_precision=1e-9).covariance(x)
        for times in (1, 100)
    )
    torch.testing.assert_close(few / 100, many, rtol=1e-6, atol=1e-8)


@STRUCTURES
@pytest.mark.parametrize("method", laplace.METHODS)
def test_far_from_the_training_samples_confidence_stays_below_1(
    structure: Structure, method: laplace.Method
) -> None:
    """The confidence of the fit goes to 1; that of the posterior goes down, and to a limit < 1."""
    x, weight, b = problem(n=40)
    posterior = fit(x, weight, b, structure=structure)
    directions = torch.randn(50, 3, generator=torch.Generator().manual_seed(2)).double()

    def confidence(distance: float) -> tuple[Tensor, Tensor]:
        at = x.mean(0) + distance * directions
        z = logits(at, weight, b)
        return z.softmax(1).amax(1), posterior.predict_proba(z, at, method).amax(1)

    of_fit, far = confidence(1e6)
    torch.testing.assert_close(confidence(1e7)[1], far, rtol=1e-3, atol=1e-3)
    assert of_fit.min() > 0.9999
    assert far.mean() < 0.9
    assert far.min() < 0.65  # where classes are nearly tied, uncertainty takes over
    near_fit, near = confidence(1.0)
    assert (near_fit - near).mean() < (of_fit - far).mean()


@STRUCTURES
def test_probit_keeps_the_most_probable_class(structure: Structure) -> None:
    x, weight, b = problem(n=30, C=6, seed=3)
    posterior = fit(x, weight, b, structure=structure, prior_precision=0.01)
    z = logits(10 * x, weight, b)
    assert (posterior.predict_proba(z, 10 * x).argmax(1) == z.argmax(1)).all()


@STRUCTURES
def test_a_sample_is_predicted_alone_as_among_others(
    structure: Structure, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, b = problem()
    posterior, z = fit(x, weight, b, structure=structure), logits(x, weight, b)
    together = posterior.predict_proba(z, x, "sampling", draws=50)
    monkeypatch.setattr(laplace.posterior, "NUMBERS", 1000)  # in parts
    for method in laplace.METHODS:
        torch.testing.assert_close(
            posterior.predict_proba(z, x, method, draws=50),
            together if method == "sampling" else posterior.predict_proba(z, x),
        )
    torch.testing.assert_close(
        posterior.predict_proba(z[7:8], x[7:8], "sampling", draws=50), together[7:8]
    )
    assert not torch.allclose(
        posterior.predict_proba(z, x, "sampling", draws=50, seed=1), together, atol=1e-3
    )


@STRUCTURES
def test_everything_is_computed_in_float32_at_least(structure: Structure) -> None:
    """Variances in bfloat16 would have two digits."""
    x, weight, b = problem()
    posterior = fit(x, weight, b, structure=structure)
    x = x.bfloat16()
    z = logits(x.float(), weight.float(), None).bfloat16()
    for method in laplace.METHODS:
        expected = posterior.predict_log_proba(z.float(), x.float(), method)
        assert torch.equal(posterior.predict_log_proba(z, x, method), expected.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            got = posterior.predict_log_proba(z.float(), x.float(), method)
        assert torch.equal(got, expected)


@STRUCTURES
def test_a_posterior_survives_a_checkpoint(structure: Structure, tmp_path: Any) -> None:
    x, weight, b = problem()
    posterior = fit(x, weight, b, structure=structure)
    torch.save(posterior.state_dict(), tmp_path / "state")
    loaded = laplace.from_state_dict(torch.load(tmp_path / "state", weights_only=True))
    z = logits(x, weight, b)
    assert (
        str(loaded) == str(posterior) == f"Laplace approximation ({structure}, prior precision 1)"
    )
    for method in laplace.METHODS:
        assert (loaded.predict_proba(z, x, method) == posterior.predict_proba(z, x, method)).all()
        single = posterior.predict_proba(z.float(), x.float(), method)
        assert single.dtype == torch.float32
        torch.testing.assert_close(
            single.double(), posterior.predict_proba(z, x, method), rtol=1e-4, atol=1e-5
        )


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of values that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_kronecker_makes_nothing_larger_than_its_factors() -> None:
    C, D, n = 100, 30, 30
    x, weight, b = problem(n, D, C)
    with LargestTensor() as largest:
        posterior = fit(x, weight, b)
        posterior.predict_proba(logits(x, weight, b), x)
        posterior.predict_proba(logits(x, weight, b), x, "sampling", draws=2)
    assert largest.numel <= C * C
    stored = sum(t.numel() for t in posterior.state_dict().values() if isinstance(t, Tensor))
    assert stored <= C * C + D * D + 2 * (C + D)


def test_digits_of_nearly_certain_probabilities_are_kept() -> None:
    """p (1 - p) of about 1e-20 per sample; 1 - p alone would be 0."""
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    weight = torch.tensor([[-23.0], [23.0]], dtype=torch.float64)
    tau = 1e-22
    expected = 1 / (2 * 2 * math.exp(-46) + tau)  # of a centred logit: mu = 2 p (1 - p)
    for structure in laplace.STRUCTURES:
        S = fit(x, weight, prior_precision=tau, structure=structure).covariance(x)
        assert S[0, 0, 0].item() == pytest.approx(expected / 2, rel=1e-6)


@STRUCTURES
def test_certain_probabilities_leave_the_prior(structure: Structure) -> None:
    x, weight, b = problem()
    posterior = fit(x, 1e6 * weight, b, structure=structure, prior_precision=4.0)
    centring = torch.eye(4, dtype=x.dtype) - 1 / 4
    [S] = posterior.covariance(x.mean(0, keepdim=True))
    torch.testing.assert_close(S, centring / 4)


def test_rounding_makes_no_variance_negative() -> None:
    """Two samples of six features, and a class that never occurs, leave directions open."""
    x, weight, b = problem(2, 6)
    assert b is not None
    b[2] = -800.0
    posterior = fit(x, weight, b, prior_precision=1e-25)
    assert isinstance(posterior, laplace.KroneckerPosterior)
    assert (posterior.R > 0).all()


def test_a_class_that_never_occurs_has_the_variance_of_the_prior() -> None:
    x, weight, b = problem()
    assert b is not None
    b[2] = -800.0
    for structure in laplace.STRUCTURES:
        posterior = fit(x, weight, b, structure=structure, prior_precision=4.0)
        S = posterior.covariance(x.mean(0, keepdim=True))
        # The centred e_2 has the squared length 3 / 4; the data say nothing about its direction.
        assert S[0, 2, 2].item() == pytest.approx(3 / 4 / 4, rel=1e-6)
