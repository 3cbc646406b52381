"""A path equals single fits, and cross-validation equals fits on the training folds."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from softmax_torch.solvers import cross_validate, fit, path

CS = [1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0]


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    X, y = load_digits(return_X_y=True)
    return torch.from_numpy(X / 16), torch.from_numpy(y)


def sparse(X: Tensor) -> Any:
    return X.to_sparse_csr()


def streamed(X: Tensor) -> Any:
    return list(X.numpy()[:, :].reshape(3, -1, X.shape[1]))


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("form", [Tensor.numpy, sparse, streamed])
def test_path_equals_single_fits(form: Any, digits: tuple[Tensor, Tensor]) -> None:
    X, y = digits
    solutions = path(form(X), y, CS, tol=1e-8)
    assert len(solutions) == len(CS)
    for C, solution in zip(CS, solutions, strict=True):
        alone = fit(X, y, C=C, tol=1e-8)
        assert solution.converged
        assert solution.duality_gap <= 1e-8 * solution.objective
        assert solution.objective == pytest.approx(alone.objective, rel=1e-8)


def test_path_needs_fewer_passes_than_the_fits(digits: tuple[Tensor, Tensor]) -> None:
    """A joint pass serves five strengths, and warm starts are predicted."""
    X, y = digits
    alone = sum(fit(X, y, C=C).passes for C in CS)
    assert path(X, y, CS)[-1].passes < 0.6 * alone


def test_solutions_are_in_the_order_of_the_strengths(digits: tuple[Tensor, Tensor]) -> None:
    X, y = digits
    Cs = [1.0, 0.01, 0.01, 100.0]
    objectives = [s.objective for s in path(X, y, Cs)]
    assert objectives == pytest.approx([fit(X, y, C=C).objective for C in Cs], rel=2e-6)


def test_path_takes_weights_and_intercept_like_fit(digits: tuple[Tensor, Tensor]) -> None:
    X, y = digits
    options: dict[str, Any] = {
        "fit_intercept": False,
        "sample_weight": np.linspace(0.5, 2, len(y)),
        "class_weight": "balanced",
    }
    [_, solution] = path(X, y, [0.1, 1.0], **options)
    alone = fit(X, y, C=1.0, **options)
    assert solution.objective == pytest.approx(alone.objective, rel=2e-6)
    assert not solution.bias.any()


def test_cross_validation_equals_fits_by_hand(digits: tuple[Tensor, Tensor]) -> None:
    X, y = digits
    cv = cross_validate(X, y, [0.1, 10.0], folds=3, seed=5, tol=1e-9)
    assert cv.nll.shape == cv.accuracy.shape == (3, 2)
    # The folds are dealt class by class, so their sizes are known.
    from softmax_torch.solvers.path import _assign_folds

    part = _assign_folds(y, torch.ones_like(y), 3, 5)
    for fold in range(3):
        counts = torch.bincount(y[part == fold])
        assert (counts - torch.bincount(y) / 3).abs().max() < 1
        model = fit(X[part != fold], y[part != fold], C=0.1, tol=1e-9)
        z = X[part == fold] @ model.weight.T + model.bias
        nll = torch.nn.functional.cross_entropy(z, y[part == fold])
        assert cv.nll[fold, 0].item() == pytest.approx(nll.item(), rel=1e-3)
        right = (z.argmax(1) == y[part == fold]).double().mean().item()
        assert cv.accuracy[fold, 0].item() == pytest.approx(right, abs=2e-3)
    assert cv.best == [0.1, 10.0][int(cv.nll.mean(0).argmin())]
    assert cv.solution.objective == pytest.approx(fit(X, y, C=cv.best).objective, rel=2e-6)


def test_samples_of_weight_0_take_no_place_in_a_fold(digits: tuple[Tensor, Tensor]) -> None:
    """The numbers of samples of weight > 0 of a class in two folds differ by at most one."""
    from softmax_torch.solvers.path import _assign_folds

    _, y = digits
    weight = (torch.arange(len(y)) % 9 == 0).double()  # 200 samples
    part = _assign_folds(y, weight, 4, 0)
    for fold in range(4):
        counts = torch.bincount(y[(part == fold) & (weight > 0)], minlength=10)
        assert (counts - torch.bincount(y[weight > 0]) / 4).abs().max() < 1


def test_training_folds_have_all_classes(digits: tuple[Tensor, Tensor]) -> None:
    """Class 0 has two samples of weight > 0: with both in one fold, training would lack it."""
    X, y = digits
    X, y = X[y < 3], y[y < 3]
    weight = torch.ones(len(y), dtype=torch.float64)
    weight[(y == 0).nonzero().flatten()[2:]] = 0
    for seed in range(8):
        loose = cross_validate(X, y, [1.0], folds=2, seed=seed, tol=1e-4, sample_weight=weight)
        tight = cross_validate(X, y, [1.0], folds=2, seed=seed, tol=1e-9, sample_weight=weight)
        assert tight.nll.isfinite().all()
        torch.testing.assert_close(loose.nll, tight.nll, rtol=1e-2, atol=0)
    with pytest.raises(ValueError, match="at most the 2 samples of class 0 with weight > 0, got 3"):
        cross_validate(X, y, [1.0], folds=3, sample_weight=weight)


def test_few_samples_of_weight_above_0() -> None:
    """With two samples of weight > 0 of each class among 100, both folds have finite figures."""
    X = torch.arange(100, dtype=torch.float64).unsqueeze(1) / 100
    y = torch.arange(100) % 2
    weight = torch.zeros(100)
    weight[[10, 11, 60, 61]] = 1.0
    for seed in range(20):
        cv = cross_validate(X, y, [1.0], folds=2, seed=seed, sample_weight=weight)
        assert cv.nll.isfinite().all()
        assert cv.accuracy.isfinite().all()


def test_cross_validation_finds_the_strength_that_generalizes() -> None:
    """With noise features a moderate penalty is better than none and better than a huge one."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(300, 60, generator=generator, dtype=torch.float64)
    z = X[:, :2] @ torch.randn(2, 3, generator=generator, dtype=torch.float64) * 2
    y = torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)
    cv = cross_validate(X, y, [1e-5, 3e-2, 1e5])
    assert cv.best == 3e-2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"Cs": []}, "Cs: expected at least one"),
        ({"Cs": [1.0, -1.0]}, "C: expected a number above 0 .* got -1.0"),
        ({"Cs": [float("inf")]}, "Cs: expected finite numbers, got inf"),
        ({"Cs": [1.0], "folds": 1}, "folds: expected at least 2, got 1"),
        ({"Cs": [1.0], "folds": 175}, "at most the 174 samples of class 8 with weight > 0, got"),
        ({"Cs": [1.0, 10**400]}, "C: expected a number that a float can hold"),
    ],
)
def test_refused_arguments(
    arguments: dict[str, Any], match: str, digits: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(ValueError, match=match):
        cross_validate(*digits, **arguments)
