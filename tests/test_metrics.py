"""Metrics against scikit-learn, torchmetrics and examples by hand."""

import doctest
import math

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    recall_score,
    top_k_accuracy_score,
)
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from softmax_torch import metrics
from softmax_torch.metrics import BINS, GAP_UNIT
from softmax_torch.report.bootstrap import score_samples, set_metrics
from softmax_torch.training.epoch_metrics import EvaluationMetrics


def samples(n: int, C: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(n, C, generator=generator)
    y = torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)
    return scale * z, y


def ece(z: Tensor, y: Tensor) -> float:
    sums = metrics.gap_sums(metrics.correct(z, y), metrics.confidence(z))
    return float(metrics.ece(metrics.gaps(sums, len(y))))


def evaluate(z: Tensor, y: Tensor) -> dict[str, float]:
    """Return the metrics that the command ``test`` prints."""
    evaluation = EvaluationMetrics()
    evaluation.add(z, y)
    return {name: float(x) for name, x in evaluation.result(reduce=lambda x: x).items()}


def test_the_example_of_the_module() -> None:
    assert doctest.testmod(metrics, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("C", [2, 3, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_metrics_are_those_of_other_libraries(C: int, dtype: torch.dtype) -> None:
    z, y = samples(500, C)
    p, z = z.double().softmax(1), z.to(dtype)
    expected = {
        "accuracy": accuracy_score(y, z.argmax(1)),
        "nll": log_loss(y, p, labels=range(C)),
        "brier": ((p.numpy() - np.eye(C)[y]) ** 2).sum(1).mean(),
        "ece": float(multiclass_calibration_error(p, y, C, n_bins=BINS, norm="l1")),
    }
    got = {
        "accuracy": float(metrics.correct(z, y).double().mean()),
        "nll": float(metrics.nll(z, y).mean()),
        "brier": float(metrics.brier(z, y).mean()),
        "ece": ece(z, y),
    }
    # torchmetrics adds up in float32.
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert set_metrics(score_samples(z, y)) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert min(got.values()) > 0.01


def test_a_confidence_at_an_edge_belongs_to_the_bin_above_and_1_to_the_last() -> None:
    edges = torch.linspace(0, 1, BINS + 1)
    below = torch.nextafter(edges[1:], torch.zeros(()))
    assert metrics.bin_index(edges).tolist() == [*range(BINS), BINS - 1]
    assert metrics.bin_index(below).tolist() == list(range(BINS))


def test_certain_predictions_share_the_last_bin_in_evaluation_and_report() -> None:
    """500 samples at confidence 1.0, 98% of them correct, and 500 at 0.95, all correct.

    torchmetrics 1.9 has a bin for 1.0 alone: it finds 0.0350.
    """
    certain, likely = torch.tensor([200.0, 0.0]), torch.tensor([math.log(19.0), 0.0])
    z = torch.stack([certain] * 500 + [likely] * 500)
    y = torch.tensor([1] * 10 + [0] * 990)
    assert metrics.confidence(z).unique().tolist() == pytest.approx([0.95, 1.0])
    assert metrics.confidence(z)[0] == 1.0
    for value in (ece(z, y), evaluate(z, y)["ece"], set_metrics(score_samples(z, y))["ece"]):
        assert value == pytest.approx(0.0150, abs=1e-6)


@pytest.mark.parametrize("C", [2, 7, 300])
def test_evaluation_and_report_agree(C: int) -> None:
    z, y = samples(1234, C)
    expected = set_metrics(score_samples(z, y))
    expected["balanced_accuracy"] = recall_score(y, z.argmax(1), labels=y.unique(), average="macro")
    expected["macro_f1"] = f1_score(y, z.argmax(1), average="macro")
    expected["weighted_f1"] = f1_score(y, z.argmax(1), average="weighted")
    for name, value in evaluate(z, y).items():
        assert value == pytest.approx(expected[name], rel=2e-7), name


def test_gaps_are_exact_sums_in_any_order() -> None:
    z, y = samples(1000, 4)
    correct, confidence = metrics.correct(z, y), metrics.confidence(z)
    sums = metrics.gap_sums(correct, confidence)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    parts = zip(correct[order].split(99), confidence[order].split(99), strict=True)
    assert torch.equal(sum(metrics.gap_sums(*part) for part in parts), sums)
    b = metrics.bin_index(confidence)
    exact = torch.zeros(BINS, dtype=torch.float64)
    exact.index_add_(0, b, correct.double() - confidence.double())
    assert torch.equal(sums.double() / GAP_UNIT, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z, y = samples(300, 5)
    z = z.to(dtype)
    for half, single in (
        (metrics.correct(z, y), metrics.correct(z.float(), y)),
        (metrics.brier(z, y), metrics.brier(z.float(), y)),
        (metrics.confidence(z), metrics.confidence(z.float())),
    ):
        assert torch.equal(half, single)
    assert metrics.fixed_point(torch.full((3,), 60000.0, dtype=torch.float16), 1 << 20).sum() > 0


def test_a_class_index_out_of_range_is_an_error() -> None:
    with pytest.raises(IndexError, match=r"\[0, 3\).*got 3"):
        metrics.nll(torch.zeros(2, 3), torch.tensor([0, 3]))


def test_baseline_is_scikit_learns_classifier_of_class_frequencies() -> None:
    train, y = torch.tensor([0, 2, 2, 1, 2, 3, 3, 1, 2]), torch.tensor([2, 0, 1, 1, 3, 2, 2])
    frequencies = DummyClassifier(strategy="prior").fit(np.zeros((len(train), 1)), train.numpy())
    x = np.zeros((len(y), 1))
    predicted = frequencies.predict(x)
    expected = (
        log_loss(y, frequencies.predict_proba(x), labels=range(4)),
        accuracy_score(y, predicted),
        balanced_accuracy_score(y, predicted),
    )
    assert metrics.baseline(torch.bincount(train), y) == pytest.approx(expected, rel=1e-12)


def test_baseline_of_a_class_without_training_samples_is_infinite() -> None:
    found = metrics.baseline(torch.tensor([3, 0, 1]), torch.tensor([0, 1]))
    assert found == (math.inf, 0.5, 0.5)


def test_balanced_accuracy_leaves_out_classes_without_samples() -> None:
    y, predicted = torch.tensor([0, 0, 0, 2, 2, 5]), torch.tensor([0, 0, 1, 2, 0, 5])
    found = metrics.balanced_accuracy(metrics.class_counts(predicted, y, 6))
    assert found == pytest.approx((2 / 3 + 1 / 2 + 1) / 3, rel=1e-12)


@pytest.mark.parametrize("present", [4, 3])
def test_figures_of_classes_are_scikit_learns(present: int) -> None:
    """Also where a class has no samples but predictions, and another has neither."""
    z, y = samples(200, 5)
    z[:, 4] = -100.0
    y = y.clamp(max=present - 1)
    predicted = z.argmax(1)
    counts = metrics.class_counts(predicted, y, 5)
    expected = precision_recall_fscore_support(y, predicted, labels=range(5), zero_division=np.nan)
    got = [metrics.precision(counts), metrics.recall(counts), metrics.f1(counts), counts[1]]
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14)
    assert metrics.f1(counts).isnan().tolist() == [False] * 4 + [True]
    macro = f1_score(y, predicted, average="macro")
    assert metrics.macro(metrics.f1(counts)) == pytest.approx(macro, rel=1e-14)
    weighted = f1_score(y, predicted, average="weighted")
    assert metrics.weighted(metrics.f1(counts), counts[1]) == pytest.approx(weighted, rel=1e-14)


def test_counts_of_classes_add_up() -> None:
    z, y = samples(90, 3)
    parts = zip(z.argmax(1).split(40), y.split(40), strict=True)
    total = sum(metrics.class_counts(*part, 3) for part in parts)
    assert torch.equal(total, metrics.class_counts(z.argmax(1), y, 3))
    assert total.sum(1)[1:].tolist() == [90, 90]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_accuracy_is_scikit_learns(k: int) -> None:
    z, y = samples(300, 7)
    got = metrics.top_k_correct(z, y, k).double().mean()
    assert float(got) == pytest.approx(top_k_accuracy_score(y, z, k=k, labels=range(7)), rel=1e-14)


def test_of_equal_logits_the_first_class_comes_first() -> None:
    z, y = torch.tensor([[1.0, 2.0, 2.0, 2.0]] * 4), torch.arange(4)
    assert torch.equal(metrics.top_k_correct(z, y, 1), metrics.correct(z, y))
    assert metrics.top_k_correct(z, y, 2).tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        metrics.top_k_correct(z, y, 0)
