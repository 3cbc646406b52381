"""Metrics of a set against examples by hand; bootstrap intervals against scipy and the truth."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from sample_results import make_set

from softmax_torch.metrics import BINS
from softmax_torch.report import bootstrap
from softmax_torch.report.bootstrap import RESAMPLES, intervals, score_samples, set_metrics


def test_two_samples_by_hand() -> None:
    z = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])  # 3/4 for the first, twice
    got = set_metrics(score_samples(z, torch.tensor([0, 1])))
    assert got["accuracy"] == 0.5
    assert got["nll"] == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert got["brier"] == pytest.approx((2 / 16 + 2 * 9 / 16) / 2)
    assert got["ece"] == pytest.approx(0.25)


def test_a_confidence_of_1_is_in_the_last_bin() -> None:
    scores = score_samples(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 0]))
    assert scores.confidence.tolist() == [1.0, 1.0]
    assert scores.bin.tolist() == [BINS - 1, BINS - 1]
    assert set_metrics(scores) == pytest.approx(
        {"accuracy": 0.5, "nll": 500, "brier": 1, "ece": 0.5}
    )


def test_scores_do_not_depend_on_the_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = make_set(101, 4, 0)
    whole = score_samples(z, y)
    monkeypatch.setattr(bootstrap, "MAX_LOGITS", 40)
    for one, other in zip(score_samples(z, y), whole, strict=True):
        # An exponential may differ in its last bit by its place in a vector of the processor.
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-15)


def test_intervals_are_percentiles_of_resamples() -> None:
    """Each resample is scored by itself."""
    z, y = make_set(80, 3, 0)
    generator = torch.Generator().manual_seed(bootstrap.SEED)
    drawn = torch.randint(80, (RESAMPLES, 80), generator=generator)
    values = [set_metrics(score_samples(z[rows], y[rows])) for rows in drawn]
    for name, (low, high) in intervals(score_samples(z, y)).items():
        expected = np.quantile([value[name] for value in values], [0.025, 0.975])
        assert (low, high) == pytest.approx(expected.tolist())


@pytest.mark.parametrize("name", ["accuracy", "nll", "brier"])
def test_intervals_are_near_those_of_scipy(name: str) -> None:
    scores = score_samples(*make_set(400, 3, 0))
    values = {"accuracy": scores.correct, "nll": scores.nll, "brier": scores.brier}[name].numpy()
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    low, high = intervals(scores)[name]
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.1 * width)
    assert high == pytest.approx(expected.high, abs=0.1 * width)


def test_fewer_counts_at_once_give_intervals_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = score_samples(*make_set(300, 3, 0))
    whole = intervals(scores)
    assert intervals(scores) == whole  # seeded
    shapes = []
    zeros = torch.zeros

    def recorded(*shape: int, **kwargs: torch.dtype) -> torch.Tensor:
        shapes.append(shape)
        return zeros(*shape, **kwargs)

    monkeypatch.setattr(bootstrap, "MAX_COUNTS", 3000)
    monkeypatch.setattr(torch, "zeros", recorded)
    parts = intervals(scores)
    assert {shape for shape in shapes if len(shape) == 2} == {(10, 300)}
    for name, (low, high) in whole.items():
        assert parts[name] == pytest.approx((low, high), abs=0.15 * (high - low))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """If classes are drawn from p, the expected NLL is the mean entropy of p."""
    z, _ = make_set(40_000, 3, 0)
    p = z.double().softmax(1)
    truth = float(-(p * p.log()).sum(1).mean())
    covered = 0
    for seed in range(100):
        sample, y = make_set(200, 3, 1000 + seed)
        low, high = intervals(score_samples(sample, y))["nll"]
        covered += low <= truth <= high
    assert 90 <= covered <= 99


def test_the_intervals_of_one_sample_have_no_width() -> None:
    scores = score_samples(*make_set(1, 3, 0))
    for name, value in set_metrics(scores).items():
        assert intervals(scores)[name] == pytest.approx((value, value))
