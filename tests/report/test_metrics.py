"""Metrics against those of others and cases by hand; intervals against scipy and the truth."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from made import evaluated
from sklearn.metrics import accuracy_score, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from softmax_torch.report import metrics
from softmax_torch.report.metrics import BINS, RESAMPLES, figures, intervals, judge


@pytest.mark.parametrize("C", [2, 3, 20])
def test_the_figures_are_those_of_others(C: int) -> None:
    z, y = evaluated(500, C, 0, scale=2.0)
    p = z.double().softmax(1)
    got = figures(judge(z, y))
    assert got["accuracy"] == pytest.approx(accuracy_score(y, z.argmax(1)))
    assert got["nll"] == pytest.approx(log_loss(y, p, labels=range(C)))
    assert got["brier"] == pytest.approx(((p.numpy() - np.eye(C)[y]) ** 2).sum(1).mean())
    expected = multiclass_calibration_error(p, y, C, n_bins=BINS, norm="l1")
    assert got["ece"] == pytest.approx(float(expected), abs=1e-6)  # torchmetrics counts in float32
    assert min(got.values()) > 0.01


def test_two_samples_by_hand() -> None:
    z = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])  # 3/4 for the first, twice
    got = figures(judge(z, torch.tensor([0, 1])))
    assert got["accuracy"] == 0.5
    assert got["nll"] == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert got["brier"] == pytest.approx((2 / 16 + 2 * 9 / 16) / 2)
    assert got["ece"] == pytest.approx(0.25)


def test_certainty_is_in_the_last_bin() -> None:
    judged = judge(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 0]))
    assert judged.confidence.tolist() == [1.0, 1.0]
    assert judged.bin.tolist() == [BINS - 1, BINS - 1]
    assert figures(judged) == pytest.approx({"accuracy": 0.5, "nll": 500, "brier": 1, "ece": 0.5})


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = evaluated(101, 4, 0)
    whole = judge(z, y)
    monkeypatch.setattr(metrics, "LOGITS", 40)
    for one, other in zip(judge(z, y), whole, strict=True):
        # Which samples share a vector of the processor may change the last bit of an exponential.
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-15)


def test_intervals_are_percentiles_of_resamples() -> None:
    """One by one, and judged anew each time."""
    z, y = evaluated(80, 3, 0)
    generator = torch.Generator().manual_seed(metrics.SEED)
    drawn = torch.randint(80, (RESAMPLES, 80), generator=generator)
    values = [figures(judge(z[rows], y[rows])) for rows in drawn]
    for name, (low, high) in intervals(judge(z, y)).items():
        expected = np.quantile([value[name] for value in values], [0.025, 0.975])
        assert (low, high) == pytest.approx(expected.tolist())


@pytest.mark.parametrize("name", ["accuracy", "nll", "brier"])
def test_intervals_are_near_those_of_scipy(name: str) -> None:
    judged = judge(*evaluated(400, 3, 0))
    values = {"accuracy": judged.right, "nll": judged.nll, "brier": judged.brier}[name].numpy()
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    low, high = intervals(judged)[name]
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.1 * width)
    assert high == pytest.approx(expected.high, abs=0.1 * width)


def test_few_counts_at_once_give_intervals_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = judge(*evaluated(300, 3, 0))
    whole = intervals(judged)
    assert intervals(judged) == whole  # seeded
    shapes = []
    zeros = torch.zeros

    def noted(*shape: int, **kwargs: torch.dtype) -> torch.Tensor:
        shapes.append(shape)
        return zeros(*shape, **kwargs)

    monkeypatch.setattr(metrics, "ENTRIES", 3000)
    monkeypatch.setattr(torch, "zeros", noted)
    parts = intervals(judged)
    assert {shape for shape in shapes if len(shape) == 2} == {(10, 300)}
    for name, (low, high) in whole.items():
        assert parts[name] == pytest.approx((low, high), abs=0.15 * (high - low))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Of classes that are drawn from p itself the expected NLL is the mean entropy."""
    z, _ = evaluated(40_000, 3, 0)
    p = z.double().softmax(1)
    truth = float(-(p * p.log()).sum(1).mean())
    covered = 0
    for seed in range(100):
        sample, y = evaluated(200, 3, 1000 + seed)
        low, high = intervals(judge(sample, y))["nll"]
        covered += low <= truth <= high
    assert 90 <= covered <= 99


def test_one_sample_has_an_interval_of_no_width() -> None:
    judged = judge(*evaluated(1, 3, 0))
    for name, value in figures(judged).items():
        assert intervals(judged)[name] == pytest.approx((value, value))
