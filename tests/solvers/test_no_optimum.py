"""Without a penalty fit raises an error if there is no optimum, and finds it if there is one."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from softmax_torch.solvers import fit

Data = tuple[Tensor, Tensor]


def samples(seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    return X, torch.randint(3, (200,), generator=generator)


def separable() -> Data:
    X, _ = samples()
    return X, X.argmax(1)


def one_class_apart() -> Data:
    """Return quasi-completely separated data: class 0 is apart, and the other classes overlap."""
    X, y = samples()
    X[:, 0] = torch.where(y == 0, X[:, 0].abs(), -X[:, 0].abs())
    return X, y


def feature_of_one_class() -> Data:
    """Return data with a feature that is 0 except for some samples of class 0."""
    X, y = samples()
    X[:, 2] = ((y == 0) & (X[:, 0] > 0)).double()
    return X, y


def two_classes_touching() -> Data:
    """Return two classes that share only one point."""
    X = torch.linspace(-1, 1, 41, dtype=torch.float64).unsqueeze(1)
    y = (X[:, 0] > 0).long()
    return torch.cat([X, X[20:21]]), torch.cat([y, 1 - y[20:21]])


@pytest.mark.parametrize("solver", ["auto", "lbfgs", "newton"])
@pytest.mark.parametrize(
    "make", [separable, one_class_apart, feature_of_one_class, two_classes_touching]
)
def test_no_optimum_is_an_error(make: Any, solver: str) -> None:
    X, y = make()
    with pytest.raises(ValueError, match=r"no optimum without a penalty; .* grow without bound"):
        fit(X, y, C=math.inf, solver=solver)
    assert fit(X, y, C=100.0).converged
    weight = torch.ones(len(y))
    with pytest.raises(ValueError, match="no optimum"):
        fit(X, y, C=math.inf, solver=solver, sample_weight=weight)


@pytest.mark.filterwarnings("ignore:the fit ended")
def test_no_optimum_is_an_error_when_iterations_end() -> None:
    X, y = one_class_apart()
    with pytest.raises(ValueError, match="no optimum"):
        fit(X, y, C=math.inf, max_iter=8)


def ordinary() -> Data:
    return samples()


def nearly_collinear() -> Data:
    X, y = samples(1)
    X[:, 2] = X[:, 1] + 1e-4 * X[:, 2]
    return X, y


def badly_scaled() -> Data:
    X, y = samples(2)
    return X * torch.tensor([1e-4, 1.0, 1e4]), y


def constant_column() -> Data:
    X, y = samples(3)
    X[:, 1] = 1
    return X, y


def nearly_separable() -> Data:
    """Return two classes that overlap by a pair of samples: the weights are large but finite."""
    X = torch.linspace(-1, 1, 40, dtype=torch.float64).unsqueeze(1)
    y = (X[:, 0] > 0).long()
    y[19], y[20] = 1, 0
    return X, y


@pytest.mark.parametrize("solver", ["auto", "lbfgs", "newton"])
@pytest.mark.parametrize(
    "make", [ordinary, nearly_collinear, badly_scaled, constant_column, nearly_separable]
)
def test_an_optimum_is_found_where_there_is_one(make: Any, solver: str) -> None:
    X, y = make()
    solution = fit(X, y, C=math.inf, solver=solver, tol=1e-9)
    assert solution.converged
    theta = torch.cat([solution.weight, solution.bias.unsqueeze(1)], 1)
    # The gradient, in units of each column, is about 0.
    X1 = torch.cat([X, torch.ones(len(X), 1, dtype=X.dtype)], 1)
    scale = X1.square().mean(0).sqrt()
    p = (X1 @ theta.T).softmax(1)
    gradient = (p - torch.nn.functional.one_hot(y, p.shape[1])).T @ X1 / len(X) / scale
    assert gradient.abs().max() < 1e-4
