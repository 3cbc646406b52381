"""The line search accepts a step by Armijo's condition, and by its slope below rounding."""

import doctest
import importlib
import math

import pytest

from softmax_torch.solvers.line_search import LineSearch


@pytest.mark.parametrize("name", ["fit", "line_search"])
def test_examples(name: str) -> None:
    # softmax_torch.solvers.fit is the function
    results = doctest.testmod(importlib.import_module(f"softmax_torch.solvers.{name}"))
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("F", [math.nan, math.inf, 1.0, 1.0 - 1e-5])
def test_too_little_descent_is_not_accepted(F: float) -> None:
    search = LineSearch(1.0, -0.5, error=1e-7)
    assert not search.accepts(1.0, F, 0.0)
    assert 0.1 <= search.interpolated(1.0, F) <= 0.6


def test_below_rounding_the_slope_decides() -> None:
    search = LineSearch(1.0, -1e-9, error=1e-7)
    assert search.below_rounding(1.0)
    assert search.accepts(1.0, 1.0 + 1e-8, 0.8e-9)
    assert not search.accepts(1.0, 1.0 + 1e-8, 0.95e-9)
    assert not LineSearch(1.0, -1e-9, error=1e-15).accepts(1.0, 1.0 + 1e-8, 0.8e-9)


def test_the_parabola_of_a_quadratic_function_has_its_minimum() -> None:
    search = LineSearch(1.0, -2.0, error=0.0)  # 1 - 2 t + 2.5 t^2 is least at t = 0.4
    assert search.interpolated(1.0, 1.5) == pytest.approx(0.4)


def test_no_length_is_tried_uphill() -> None:
    assert list(LineSearch(1.0, 0.5, error=1e-7).lengths()) == []
    assert min(LineSearch(1.0, -0.5, error=1e-7).lengths()) >= 1e-6
