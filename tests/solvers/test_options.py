"""Class indices, weights, strengths and other options: what is accepted and what is refused."""

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from small_data import Array, N, data, solved

from softmax_torch.solvers import cross_validate, inputs, path
from softmax_torch.solvers.objective import Penalty
from softmax_torch.solvers.problem import check_fit_options


def changed(index: int, value: int, dtype: Any = np.int64) -> Array:
    y = data()[1].astype(dtype)
    y[index] = value
    return y


@pytest.mark.parametrize(
    ("y", "error", "match"),
    [
        (np.zeros(N, int), ValueError, "at least 2 classes, got class 0 alone"),
        (np.zeros(N - 1, int), ValueError, r"expected shape \(300,\).*got \(299,\)"),
        (np.zeros((N, 1), int), ValueError, r"got \(300, 1\)"),
        (data()[1].astype(float), TypeError, "integer type, got torch.float64"),
        (changed(0, -1), ValueError, "at least 0, got -1"),
        (changed(0, 2**62), ValueError, "got 4611686018427387904 among 300 samples"),
        (changed(0, 2**64 - 1, np.uint64), ValueError, "y: expected class indices"),
        (data()[1] * 2, ValueError, r"every class in \[0, 7\), got none of class 1"),
        (["a"] * N, TypeError, "y: expected numbers, got dtype <U1"),
        (torch.from_numpy(data()[1]) + 1j, TypeError, "y: expected real numbers, got torch.comp"),
        (data()[1].astype(object) + 0.5, TypeError, "integer type, got torch.float64"),
        ([None, *data()[1][1:]], ValueError, "y: expected no missing values, got None in entry 0"),
    ],
)
def test_bad_class_indices(y: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        solved(data()[0], y)


def test_class_indices_of_any_container() -> None:
    X, y = data()
    expected = solved(X, y).objective
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    for given in (
        pandas.Series(y, dtype="Int64"),
        pandas.Series(y, dtype="category"),
        polars.Series(y),
        y.astype(object),
        y.astype(np.uint16),
        y.tolist(),
    ):
        assert solved(X, given).objective == expected
    with pytest.raises(ValueError, match="y: expected no missing values, got some"):
        solved(X[:3], pandas.Series([0, None, 1], dtype="Int64"))
    two = y > 1
    assert solved(X, two).objective == solved(X, two.astype(int)).objective


@pytest.mark.parametrize("scale", [1e12, 1e-12])
def test_weights_of_any_scale(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """F depends on the scale of the weights only through C."""
    X, y = data()
    monkeypatch.setattr(inputs, "SMALL", 0)
    weight = np.random.default_rng(0).uniform(0.5, 2, N)
    got = solved(X, y, sample_weight=scale * weight, C=1e-3 / scale)
    expected = solved(X, y, sample_weight=torch.from_numpy(weight).requires_grad_(), C=1e-3)
    assert got.objective == pytest.approx(expected.objective, rel=1e-10)


@pytest.mark.parametrize(
    "dtype",
    ["float64", "torch.float64", torch.float64, np.float64, np.dtype(np.float64)],
    ids=str,
)
def test_names_of_dtypes(dtype: Any) -> None:
    X, y = data()
    X = X.astype(np.float32)
    assert inputs.as_samples(X, None, dtype).dtype == torch.float64
    name = str(dtype).replace("64", "32") if isinstance(dtype, str) else np.float32
    assert inputs.as_samples(X, None, name).dtype == torch.float32
    expected = solved(X, y, dtype=torch.float64).objective
    assert solved(X, y, dtype=dtype).objective == expected
    assert path(X, y, [1e-3], tol=1e-10, dtype=dtype)[0].converged
    assert cross_validate(X, y, [1e-3], folds=2, tol=1e-10, dtype=dtype).solution.converged


@pytest.mark.parametrize("number", [np.float16, np.float64, torch.tensor, np.array, Decimal])
def test_numbers_of_any_type(number: Any) -> None:
    options = check_fit_options(number(500.0), number(0.5), number(0.25), number(100.0), "auto")
    assert options == (500.0, 0.5, 0.25, 100)
    assert [type(option) for option in options] == [float, float, float, int]


def test_a_path_of_options_in_float16() -> None:
    """In float16 C times 300 samples would be infinite, and 1 / (C S) has three digits."""
    X, y = data()
    half = {"l1_ratio": np.float16(0.3), "tol": np.float16(1e-3), "max_iter": np.int16(500)}
    [got] = path(X, y, [np.float16(0.01)], **half)
    C, l1_ratio, tol = (float(np.float16(value)) for value in (0.01, 0.3, 1e-3))
    [expected] = path(X, y, [C], l1_ratio=l1_ratio, tol=tol, max_iter=500)
    assert got.objective == expected.objective


@pytest.mark.parametrize(
    ("C", "scale", "match"),
    [
        (
            1e-45,
            1.0,
            r"C times the sum of the weights to be at least 1e-30, got C=1e-45 and .* 300",
        ),
        (1e-38, 1e-8, "at least 1e-30, got C=1e-38 and the sum 3e-06"),
        (1e-310, 1.0, "at least 1e-30, got C=1e-310"),
        (1e308, 1.0, r"finite C times the sum of the weights, got C=1e\+308 and the sum 300"),
    ],
)
def test_strengths_that_cannot_be_computed(C: float, scale: float, match: str) -> None:
    X, y = data()
    weight = np.full(N, scale)
    for use in (path, cross_validate):
        with pytest.raises(ValueError, match=match):
            use(X, y, [1e-3, C], sample_weight=weight)
    with pytest.raises(ValueError, match=match):
        Penalty.of_strength(C, 0.0, scale * N)


def test_strengths_at_the_limit() -> None:
    Penalty.of_strength(1e-30, 0.0, 1.0)
    Penalty.of_strength(math.inf, 0.0, 1.0)
    X, y = data()
    [solution] = path(X, y, [1e-30 / 299])
    assert solution.converged
    shares = np.bincount(y) / N
    assert solution.objective == pytest.approx(-shares @ np.log(shares), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "error", "match"),
    [
        ("C", "1", TypeError, "C: expected a number, got '1'"),
        ("C", None, TypeError, "C: expected a number, got None"),
        ("C", [1.0], TypeError, r"C: expected a number, got \[1.0\]"),
        ("C", np.ones(1), TypeError, r"C: expected a number, got array\(\[1.\]\)"),
        ("C", 1j, TypeError, "C: expected a number, got 1j"),
        pytest.param("C", 10**400, ValueError, "C: expected a number that a float can", id="huge"),
        ("C", Decimal("1e400"), ValueError, "C: expected a number that a float can hold"),
        ("l1_ratio", "1", TypeError, "l1_ratio: expected a number, got '1'"),
        ("tol", torch.ones(2), TypeError, "tol: expected a number, got tensor"),
        ("max_iter", 10.5, ValueError, "max_iter: expected a whole number, got 10.5"),
        ("max_iter", math.inf, ValueError, "max_iter: expected a whole number, got inf"),
        ("max_iter", math.nan, ValueError, "max_iter: expected at least 1, got nan"),
    ],
)
def test_options_that_are_not_numbers(
    name: str, value: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        solved(*data(), **{name: value})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"sample_weight": np.full(N, -1.0)},
            "sample_weight: expected finite numbers >= 0, got -1",
        ),
        ({"sample_weight": np.full(N, np.nan)}, "sample_weight: .* got nan"),
        ({"sample_weight": np.zeros(N)}, "samples of weight > 0 in every class, got none in cla"),
        (
            {"sample_weight": np.ones(N - 1)},
            r"sample_weight: expected shape \(300,\), got \(299,\)",
        ),
        ({"sample_weight": np.full(N, 1e308)}, r"sum from 1e-30 to 1e\+30, got inf; scale"),
        ({"sample_weight": np.full(N, 1e-320)}, "sum from 1e-30 to .*, got 2.99.*e-318"),
        ({"class_weight": [1e200] * 4}, "sample_weight and class_weight: expected weights with a"),
        (
            {"sample_weight": data()[1] != 1, "class_weight": "balanced"},
            "sample_weight: expected samples of weight > 0 in every class, got none in class 1",
        ),
        ({"class_weight": [1, 1, 1]}, r"class_weight: expected shape \(4,\), got \(3,\)"),
        ({"class_weight": [1, 1, 1, -1]}, "class_weight: expected finite numbers >= 0, got -1"),
        ({"class_weight": {7: 1.0}}, r"class_weight: expected classes in \[0, 4\), got 7"),
        ({"class_weight": "auto"}, "class_weight: expected \"balanced\".*got 'auto'"),
        ({"C": 0.0}, "C: expected a number above 0 .*got 0.0"),
        ({"C": math.nan}, "C: expected a number above 0 .*got nan"),
        ({"l1_ratio": 2.0}, r"l1_ratio: expected a number in \[0, 1\], got 2.0"),
        ({"tol": 0.0}, "tol: expected a number above 0, got 0.0"),
        ({"max_iter": 0}, "max_iter: expected at least 1, got 0"),
        ({"solver": "saga"}, "solver: expected auto, lbfgs, .*got 'saga'"),
        ({"dtype": torch.float16}, "dtype: expected torch.float32, .*got torch.float16"),
        ({"dtype": "float16"}, "dtype: expected torch.float32, .*got 'float16'"),
        ({"dtype": "double"}, "dtype: expected torch.float32, .*got 'double'"),
        ({"dtype": np.int64}, "dtype: expected torch.float32, .*got <class 'numpy.int64'>"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        solved(*data(), **options)


def test_warm_start_of_another_shape() -> None:
    X, y = data()
    with pytest.raises(ValueError, match=r"weight \(4, 11\).*got \(4, 12\)"):
        solved(X[:, 1:], y, warm_start=solved(X, y))
