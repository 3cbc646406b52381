"""What a Laplace approximation cannot be made of, or asked for, is refused in words."""

import math
from typing import Any

import pytest
import torch
from laplace_problems import logits, problem

from softmax_torch.laplace import Posterior, fit


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"structure": "diagonal"}, ValueError, "structure: expected kronecker or full, got 'diag"),
        ({"prior_precision": 0.0}, ValueError, "prior_precision: expected a number > 0, got 0.0"),
        ({"prior_precision": math.inf}, ValueError, "prior_precision: expected a number > 0"),
        ({"weight": torch.ones(1, 3)}, ValueError, r"weight: .*C >= 2 classes, got \(1, 3\)"),
        ({"weight": torch.full((4, 3), math.nan)}, ValueError, "weight: expected finite"),
        ({"bias": torch.ones(3)}, ValueError, r"bias: expected shape \(4,\), got \(3,\)"),
        ({"features": torch.ones(5, 2)}, ValueError, r"features: .*\(n, 3\), got \(5, 2\)"),
        ({"features": [[1.0]]}, TypeError, "features: expected tensors, got list"),
        ({"features": []}, ValueError, "features: expected training samples of weight > 0, got no"),
        ({"features": [(torch.ones(2, 3), torch.zeros(2))]}, ValueError, "weight > 0, got none"),
        (
            {"features": torch.tensor([[0.0, 0, 0], [0, math.inf, 0]])},
            ValueError,
            "features: expected finite numbers, got NaN or infinity in row 1",
        ),
        (
            {"features": [(torch.ones(2, 3), torch.tensor([1.0, -1]))]},
            ValueError,
            r"features: expected weights \(2,\) that are finite and >= 0, got \(2,\) with a .*-1",
        ),
        (
            {"features": [(torch.ones(2, 3), torch.ones(1))]},
            ValueError,
            r"weights \(2,\) .* \(1,\)",
        ),
    ],
)
def test_unusable_arguments_are_refused(change: Any, error: type[Exception], says: str) -> None:
    x, weight, b = problem()
    with pytest.raises(error, match=says):
        fit(**{"features": x, "weight": weight, "bias": b, **change})


def test_a_full_posterior_that_is_too_large_says_what_it_would_need() -> None:
    weight = torch.zeros(3100, 128)
    says = r"at most 4096 coefficients .* 3100 classes of 129: .* take 1\.19e\+03 GiB; .*kronecker"
    with pytest.raises(ValueError, match=says):
        fit(torch.ones(2, 128), weight, torch.zeros(3100), structure="full")


def test_unusable_predictions_are_refused() -> None:
    x, weight, b = problem()
    posterior: Posterior = fit(x, weight, b)
    z = logits(x, weight, b)
    with pytest.raises(ValueError, match="method: expected probit or sampling, got 'mean'"):
        posterior.predict_proba(z, x, "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="draws: expected at least 1, got 0"):
        posterior.predict_proba(z, x, "sampling", draws=0)
    with pytest.raises(ValueError, match=r"expected shapes \(n, 4\) and \(n, 3\), got \(60, 4\)"):
        posterior.predict_proba(z, x[:1])
