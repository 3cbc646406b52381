"""The metrics of each class are scikit-learn's; those that a class has not are left out."""

import numpy as np
import pytest
import torch
from sample_results import make_results
from sklearn.metrics import average_precision_score, classification_report, roc_auc_score

from softmax_torch.report.class_metrics import ClassMetrics, macro_average
from softmax_torch.report.evaluation import Evaluation
from softmax_torch.report.run_results import EvaluatedSet, RunResults
from softmax_torch.report.score_intervals import share


def per_class(results: RunResults) -> list[ClassMetrics]:
    return Evaluation(results.test, results.class_names).classes


def test_metrics_of_classes_are_scikit_learns() -> None:
    results = make_results(5, n=300)
    y, p = results.test.y, results.test.logits.double().softmax(1)
    expected = classification_report(y, p.argmax(1), output_dict=True, zero_division=0)
    rows = per_class(results)
    of_all = macro_average(rows)
    for name, row in [*((str(c), row) for c, row in enumerate(rows)), ("macro avg", of_all)]:
        got = {"precision": row.precision.value, "recall": row.recall.value}
        got |= {"f1-score": row.f1.value, "support": row.support}
        assert got == pytest.approx(expected[name])
    for c, row in enumerate(rows):
        assert row.name == f"c{c}"
        assert row.auc.value == pytest.approx(roc_auc_score(y == c, p[:, c]), rel=1e-12)
        assert row.ap.value == pytest.approx(average_precision_score(y == c, p[:, c]), rel=1e-12)
        for one in row.estimates.values():
            assert 0 < one.low < one.value < one.high < 1
    assert of_all.auc.value == pytest.approx(np.mean([row.auc.value for row in rows]), rel=1e-14)


def test_an_auc_without_errors_is_as_certain_as_the_smaller_part_of_the_samples() -> None:
    y = torch.tensor([0] * 3 + [1] * 20)
    z = torch.nn.functional.one_hot(y, 2).float()
    rows = per_class(make_results(2, n=23, test=EvaluatedSet(z, y)))
    assert [row.auc[:3] for row in rows] == [share(3, 3)[:3]] * 2
    assert [row.ap[:3] for row in rows] == [share(3, 3)[:3], share(20, 20)[:3]]


def test_a_class_without_samples_or_predictions_has_no_metrics() -> None:
    """Class 1 is never predicted; class 2 has no samples and is never predicted."""
    z = torch.tensor([[5.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    results = make_results(3, n=2, test=EvaluatedSet(z, torch.tensor([0, 1])))
    zero, one, two = per_class(results)
    assert (zero.precision.value, zero.recall.value) == (0.5, 1.0)
    assert np.isnan(one.precision).tolist() == [True, True, True, False]
    assert (one.recall.value, one.f1.value, one.support) == (0.0, 0.0, 1)
    assert np.isnan([two.precision.value, two.recall.value, two.f1.value, two.ap.value]).all()
    mean = macro_average([zero, one, two])
    assert (mean.precision.value, mean.recall.value, mean.support) == (0.5, 0.5, 2)
