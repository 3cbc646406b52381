"""The section about conformal sets shows coverage and sizes as they are on the test set."""

import math

import pytest
import torch
from sample_results import make_results, make_set
from scipy.stats import beta
from test_page import without_figures

from softmax_torch.conformal import ConformalSets, fit
from softmax_torch.report.prediction_sets import beta_quantile, draw, evaluate_sets
from softmax_torch.report.run_results import MAX_CLASSES, EvaluatedSet, RunResults
from softmax_torch.report.score_intervals import share


def with_sets(
    C: int = 3, level: float = 0.9, per_class: bool = False, **fields: object
) -> RunResults:
    sets = fit(*make_set(600, C, seed=5), level, "lac", per_class=per_class)
    return make_results(C, shape=(4,), conformal=sets, **fields)


def test_coverage_and_sizes_are_those_of_the_sets() -> None:
    results = with_sets(level=0.5)
    found = evaluate_sets(results)
    assert found is not None
    assert results.conformal is not None
    z, y = results.test
    members = z.softmax(1) >= results.conformal.threshold
    for c, row in enumerate(found.rows):
        mine = members[y == c]
        hits, n = int(mine[:, c].sum()), len(mine)
        assert row == (f"c{c}", share(hits, n), pytest.approx(float(mine.sum()) / n), n)
        assert 0 < hits < n
    covered = members[torch.arange(len(y)), y]
    assert found.total.coverage == share(int(covered.sum()), len(y))
    assert found.total.size == pytest.approx(float(members.sum()) / len(y))
    assert torch.equal(found.covered, covered)
    assert found.empty == int((~members.any(1)).sum()) > 0


@pytest.mark.parametrize(("n", "k"), [(9, 9), (600, 541), (100_000, 90_001)])
def test_quantiles_of_beta_are_scipys(n: int, k: int) -> None:
    for q in (0.025, 0.5, 0.975):
        assert beta_quantile(q, k, n) == pytest.approx(beta.ppf(q, k, n + 1 - k), abs=1e-11)


@pytest.mark.slow
def test_the_page_shows_the_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    results = with_sets()
    tree = without_figures(monkeypatch, results)
    assert {"href": "#sets"} in tree.all("a")
    images = [image["alt"] for image in tree.all("img")]
    assert sum("Samples by size of the set. 1: " in alt for alt in images) == 1
    assert sum("Coverage by class: c0 0." in alt for alt in images) == 1
    found = evaluate_sets(results)
    assert found is not None
    for row in (*found.rows, found.total):
        assert f"{row.coverage.value:.3f}" in tree.text
        assert f"{row.coverage.low:.3f} to {row.coverage.high:.3f}" in tree.text
        assert f"{row.size:.2f}" in tree.text
    assert "at least 0.9:\nLAC sets at level 0.9, from 600 samples." in tree.text
    low, high = (beta.ppf(q, 541, 60) for q in (0.025, 0.975))
    assert f"lies between {low:.3f} and {high:.3f}." in " ".join(tree.text.split())
    by_class = without_figures(monkeypatch, with_sets(per_class=True)).text
    assert "The level holds for each class." in by_class
    assert "for all classes together" not in by_class


def test_without_sets_there_is_no_section(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = without_figures(monkeypatch, make_results(shape=(4,)))
    assert {"href": "#sets"} not in tree.all("a")
    assert "Prediction sets" not in tree.text


def test_of_many_classes_those_with_the_least_coverage_are_shown() -> None:
    C = MAX_CLASSES + 10
    z, y = make_set(3000, C, seed=1)
    found = evaluate_sets(with_sets(C, n=3000, test=EvaluatedSet(z, y.where(y != 0, 6))))
    assert found is not None
    assert len(found.shown) == MAX_CLASSES
    worst = sorted(row.coverage.value for row in found.rows if row.samples)[:MAX_CLASSES]
    assert [row.coverage.value for row in found.shown] == worst


def test_a_class_without_test_samples_and_sets_that_are_all_empty() -> None:
    z, y = make_set(50, 3, seed=1)
    never = ConformalSets("lac", 0.9, torch.tensor(1.1), torch.tensor(600))
    results = make_results(3, n=50, shape=(4,), conformal=never)
    results = RunResults(**{**vars(results), "test": EvaluatedSet(z, y.clamp(max=1))})
    found = evaluate_sets(results)
    assert found is not None
    assert math.isnan(found.rows[2].coverage.value)
    assert math.isnan(found.rows[2].size)
    sizes, coverage = draw(found)
    assert "50 sets are empty" in sizes.caption
    assert sizes.alt.endswith(" 0: 0 with and 50 without the true class.")
    assert "c2" not in coverage.alt
