"""A solution's own figures are right to the digits of float64; options that fit refuses."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import load_digits

from softmax_torch.solvers import ConvergenceWarning, fit


def test_objective_has_the_digits_of_float64() -> None:
    """With weights whose sums float32 cannot hold."""
    rng = np.random.default_rng(0)
    X, y, w = rng.normal(size=(50, 3)), rng.integers(3, size=50), rng.uniform(0.1, 3, 50)
    solution = fit(X, y, C=0.5, sample_weight=w)
    W, b = solution.weight, solution.bias
    nll = -(torch.from_numpy(X) @ W.T + b).log_softmax(1)[range(50), y].numpy()
    F = (w @ nll + W.square().sum().item()) / w.sum()  # 1 / 2 C is 1
    assert solution.objective == pytest.approx(F, rel=1e-14)


def test_a_sparse_matrix_of_the_caller_stays_as_it_is() -> None:
    # Entries out of order, and a duplicate entry.
    entries = [1.0, 2.0, 3.0, 4.0, 5.0], [2, 0, 1, 1, 0], [0, 2, 4, 5]
    X = sparse.csr_array(entries, shape=(3, 3))
    solution = fit(X, [0, 1, 0])
    for part, given in zip((X.data, X.indices, X.indptr), entries, strict=True):
        assert part.tolist() == given
    torch.testing.assert_close(solution.weight, fit(X.toarray(), [0, 1, 0]).weight)


@pytest.mark.parametrize("wrong", [{"C": "1"}, {"tol": None}, {"l1_ratio": []}, {"max_iter": "x"}])
def test_options_that_are_not_numbers_are_named(wrong: dict) -> None:
    with pytest.raises(TypeError, match=r"(C|tol|l1_ratio|max_iter): expected a number, got"):
        fit(torch.eye(2), [0, 1], **wrong)


def test_digits_beyond_float32_are_found_in_float64() -> None:
    """Passes change to float64 soon after float32 makes no more progress."""
    X, y = load_digits(return_X_y=True)
    in_float64 = fit(X / 16, y, tol=1e-12, dtype=torch.float64)
    solution = fit(X / 16, y, tol=1e-12, dtype=torch.float32)
    assert solution.converged
    assert solution.iterations <= in_float64.iterations + 20
    torch.testing.assert_close(solution.weight, in_float64.weight, rtol=0, atol=1e-5)


def test_a_fit_ends_at_the_precision_of_float64() -> None:
    X, y = load_digits(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match="rounding in float64 prevents"):
        solution = fit(X / 16, y, tol=1e-30)
    assert solution.iterations <= 100
