"""Intervals of shares, F1, means and differences: published values, and their coverage."""

import doctest
import math

import numpy as np
import pytest
import torch
from sample_results import make_set
from sklearn.metrics import f1_score

from softmax_torch import metrics
from softmax_torch.report import score_intervals
from softmax_torch.report.evaluation import Evaluation
from softmax_torch.report.run_results import EvaluatedSet
from softmax_torch.report.score_intervals import (
    difference,
    f1_estimate,
    mean_estimate,
    mean_of,
    of_variance,
    share,
    wilson,
)
from softmax_torch.report.set_figures import f1_variance, top_k_of


def test_the_examples_of_the_module() -> None:
    assert doctest.testmod(score_intervals).failed == 0


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_shares_have_the_intervals_of_newcombe(count: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, "Confidence intervals for the single proportion", table I, method 3."""
    assert share(count, n).rounded(4)[1:] == (low, high)
    mirrored = share(n - count, n)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_differences_have_the_intervals_of_newcombe(
    a: tuple[int, int], b: tuple[int, int], low: float, high: float
) -> None:
    """Newcombe 1998, "Interval estimation for the difference", table II, method 10."""
    found = difference(share(*a), share(*b))
    assert found.rounded(4)[1:] == (low, high)
    assert found.value == pytest.approx(a[0] / a[1] - b[0] / b[1])


def test_no_samples_and_no_errors() -> None:
    assert math.isnan(share(0, 0).value)
    assert math.isnan(share(0, 0).low)
    perfect = share(40, 40)
    assert perfect.high == perfect.value == 1.0
    assert of_variance(1.0, 0.0, 40)[:3] == perfect[:3]
    assert of_variance(0.9, 0.9 * 0.1 / 50, 40)[1:3] == pytest.approx(wilson(0.9, 50, 0.95)[1:3])
    assert of_variance(1.0, 1e-20, 40)[:3] == perfect[:3]  # the variance rounded
    assert math.isnan(mean_estimate(torch.ones(1)).low)
    assert math.isnan(mean_of([share(0, 0)]).value)


def test_means_of_values_and_of_shares() -> None:
    values = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)  # standard deviation sqrt(7)
    factor = math.exp(1.959964 * math.sqrt(7 / 3) / 3)
    assert mean_estimate(values)[:3] == pytest.approx((3, 3 / factor, 3 * factor), rel=1e-6)
    one, other = share(1, 2), share(30, 40)
    found = mean_of([one, share(0, 0), other])
    assert found.value == pytest.approx((0.5 + 0.75) / 2)
    below = math.hypot(one.value - one.low, other.value - other.low) / 2
    above = math.hypot(one.high - one.value, other.high - other.value) / 2
    assert found[1:3] == pytest.approx((found.value - below, found.value + above))
    assert found.samples == 2 * 2


def test_the_f1_of_a_class_is_that_of_its_counts() -> None:
    found = f1_estimate(20, 30, 26)
    assert found.value == pytest.approx(2 * 20 / 56)
    jaccard = share(20, 36)
    assert found.low == pytest.approx(2 * jaccard.low / (1 + jaccard.low))


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_the_variance_of_f1_is_that_of_scikit_learns_derivatives_by_weights(average: str) -> None:
    z, y = make_set(30, 4, 3)
    predicted, n = z.argmax(1), 30
    derivatives = np.zeros(n)
    for i in range(n):
        w = np.ones(n)
        w[i] += 1e-5
        more = f1_score(y, predicted, average=average, sample_weight=w)
        w[i] -= 2e-5
        less = f1_score(y, predicted, average=average, sample_weight=w)
        derivatives[i] = (more - less) / 2e-5
    counts = metrics.class_counts(predicted, y, 4)
    found = f1_variance(predicted, y, counts, average == "weighted")
    assert found == pytest.approx((derivatives**2).sum(), rel=1e-6)


def test_means_over_classes_have_the_intervals_of_their_variances() -> None:
    z, y = make_set(100, 3, 0)
    of = Evaluation(EvaluatedSet(z, y), ["a", "b", "c"])
    expected = {
        "macro_f1": f1_variance(z.argmax(1), y, of.counts, False),
        "weighted_f1": f1_variance(z.argmax(1), y, of.counts, True),
        "macro_auc": of.ranking.macro_auc_variance,
        "macro_ap": of.ranking.macro_ap_variance,
    }
    assert len(set(expected.values())) == 4
    for name, variance in expected.items():
        one = of.class_means[name]
        assert one[:3] == of_variance(one.value, variance, 100)[:3]


@pytest.mark.parametrize(("C", "k"), [(2, None), (3, 2), (10, 2), (11, 5)])
def test_top_k_depends_on_the_number_of_classes(C: int, k: int | None) -> None:
    z, y = make_set(100, C, 0)
    found = Evaluation(EvaluatedSet(z, y), [f"c{c}" for c in range(C)]).class_means
    assert top_k_of(C) == k
    assert (f"top_{k}_accuracy" in found) == (k is not None)
    if k is not None:
        expected = float(metrics.top_k_correct(z, y, k).double().mean())
        assert found[f"top_{k}_accuracy"].value == pytest.approx(expected)


@pytest.mark.slow
def test_intervals_cover_the_figures_of_the_population() -> None:
    """Three unequal classes: 1000 sets of 400 samples, the truth from 400,000."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), n, True, generator=generator)
        z = torch.randn(n, 3, generator=generator)
        return z + 1.5 * torch.nn.functional.one_hot(y, 3) + torch.tensor([1.0, 0.5, 0.0]), y

    def figures(z: torch.Tensor, y: torch.Tensor) -> dict[str, score_intervals.Estimate]:
        found = Evaluation(EvaluatedSet(z, y), ["a", "b", "c"])
        last = {name: found.classes[2].estimates[name] for name in ("f1", "auc", "ap")}
        return found.class_means | last | {"nll": mean_estimate(metrics.nll(z, y))}

    truth = figures(*draw(400_000))
    covered = dict.fromkeys(truth, 0)
    for _ in range(1000):
        for name, one in figures(*draw(400)).items():
            covered[name] += one.low <= truth[name].value <= one.high
    for name, count in covered.items():
        assert 920 <= count <= 980, (name, count)
