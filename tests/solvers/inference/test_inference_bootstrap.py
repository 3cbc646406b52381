"""The bootstrap: resamples are weights, refits reach the optimum, failures are counted."""

from typing import Any

import numpy as np
import pytest
import torch
from small_samples import small
from torch import Tensor

from softmax_torch.solvers import inference
from softmax_torch.solvers.inference import bootstrap, refits
from softmax_torch.solvers.inference.model import FittedModel

X, Y, GROUPS = small()


def test_resamples_are_fits_of_drawn_samples() -> None:
    """The mean and the spread of the fits to X[drawn], by another generator, are about the same."""
    result = inference(X, Y, bootstrap=300, seed=1)
    found = result.bootstrap
    assert found is not None
    assert found.draws.shape == (300, 2, 4)
    shift = (found.draws.mean(0) - result.coefficients) / result.standard_errors
    assert float(shift.abs().max()) < 0.4
    rng = np.random.default_rng(0)
    others = []
    for _ in range(40):
        drawn = rng.integers(0, 300, 300)
        others.append(inference(X[drawn], Y[drawn]).coefficients)
    ratio = found.standard_errors / torch.stack(others).std(0)
    assert 0.7 < float(ratio.min()) < float(ratio.max()) < 1.4


@pytest.mark.parametrize("penalty", [{}, {"penalty": "l2", "C": 0.1}])
@pytest.mark.parametrize("reference", [0, None])
@pytest.mark.parametrize("far", [False, True])
def test_each_refit_is_an_optimum(
    penalty: dict[str, Any], reference: int | None, far: bool
) -> None:
    """Of the weights that were drawn: the same as a fit with them as frequencies.

    Also for frequencies with a unit other than 1, of samples that the fit centres.
    """
    x = X + [0, 100, 0] if far else X
    options: dict[str, Any] = {"reference": reference, **penalty}
    frequencies = 2 + np.arange(300) % 4 if far else np.ones(300)
    batches: list[Tensor] = []
    refit = bootstrap.refit

    def recorded(model: FittedModel, weights: Tensor) -> tuple[Tensor, Tensor]:
        batches.append(weights * model.objective.unit)
        thetas, converged = refit(model, weights)
        assert converged.all()
        return thetas, converged

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "refit", recorded)
        found = inference(x, Y, sample_weight=frequencies, bootstrap=4, **options).bootstrap
    assert found is not None
    assert len(batches) == 1
    for draw, w in zip(found.draws, batches[0], strict=True):
        assert float(w.sum()) == pytest.approx(frequencies.sum())
        expected = inference(x, Y, sample_weight=w, **options)
        torch.testing.assert_close(draw, expected.coefficients, rtol=1e-6, atol=1e-8)


def test_a_refit_that_is_not_there_after_some_steps_is_fitted_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = inference(X, Y, bootstrap=4).bootstrap
    monkeypatch.setattr(refits, "STEPS", 1)
    found = inference(X, Y, bootstrap=4).bootstrap
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found.draws, expected.draws)


def test_intervals_are_percentiles() -> None:
    found = inference(X, Y, bootstrap=50, confidence=0.8).bootstrap
    assert found is not None
    ends = np.quantile(found.draws.numpy(), [0.1, 0.9], axis=0)
    np.testing.assert_allclose(found.confidence_intervals.numpy(), np.moveaxis(ends, 0, 2))
    torch.testing.assert_close(found.standard_errors, found.draws.std(0))


def test_the_seed_decides() -> None:
    first, again, other = (inference(X, Y, bootstrap=5, seed=s).bootstrap for s in (0, 0, 1))
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first.draws, again.draws)
    assert not torch.equal(first.draws, other.draws)


def test_whole_groups_are_drawn() -> None:
    """Clusters that are alike spread the estimates more than samples drawn one by one."""
    x = np.repeat(np.random.default_rng(2).normal(size=(40, 1)), 15, 0)
    shift = np.repeat(np.random.default_rng(3).normal(size=40), 15)
    y = (x[:, 0] + 2 * shift + np.random.default_rng(4).logistic(size=600) > 0).astype(int)
    groups = np.repeat(np.arange(40), 15)
    grouped = inference(x, y, bootstrap=200, groups=groups)
    single = inference(x, y, bootstrap=200)
    robust = inference(x, y, covariance="cluster", groups=groups)
    assert grouped.bootstrap is not None
    assert single.bootstrap is not None
    spread = grouped.bootstrap.standard_errors
    assert float((spread / single.bootstrap.standard_errors).min()) > 1.5
    torch.testing.assert_close(spread, robust.standard_errors, rtol=0.3, atol=0)
    torch.testing.assert_close(
        single.bootstrap.standard_errors, single.standard_errors, rtol=0.3, atol=0
    )


def test_frequencies_are_resampled_as_repeated_samples() -> None:
    counts = np.arange(300) % 4
    weighted = inference(X, Y, sample_weight=counts, bootstrap=300)
    assert weighted.bootstrap is not None
    torch.testing.assert_close(
        weighted.bootstrap.standard_errors, weighted.standard_errors, rtol=0.3, atol=0
    )


@pytest.mark.parametrize("penalty", [{}, {"penalty": "l2", "C": 1.0}])
def test_resamples_without_an_optimum_are_counted(penalty: dict[str, Any]) -> None:
    """A class of two samples is missing in e^-2 of the resamples, and sometimes separated."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 1))
    y = np.zeros(60, dtype=int)
    order = np.argsort(x[:, 0])
    y[order[[20, 58]]] = 1
    found = inference(x, y, bootstrap=100, **penalty)
    assert found.bootstrap is not None
    failed = found.bootstrap.failed
    assert 5 <= failed <= 60
    assert len(found.bootstrap.draws) == 100 - failed
    assert f"attribute bootstrap; {failed} of them had no optimum" in " ".join(str(found).split())
    slope = found.bootstrap.draws[:, 0, 0]
    assert slope.abs().max() < 100


def test_resamples_with_collinear_columns_have_no_optimum() -> None:
    """A dummy of two samples is 0 in e^-2 of the resamples; its coefficient must not stay."""
    x = np.column_stack([X[:60, 0], np.arange(60) < 2])
    y = np.arange(60) % 2
    found = inference(x, y, bootstrap=40)
    assert found.bootstrap is not None
    moved = found.bootstrap.draws[:, 0, 1] - found.coefficients[0, 1]
    assert len(moved) > 5
    assert moved.abs().min() > 1e-9


def test_refused() -> None:
    for count in (-1, 1):
        with pytest.raises(ValueError, match=f"0 or at least 2 resamples, got {count}"):
            inference(X, Y, bootstrap=count)
    x = np.linspace(-1, 1, 40)[:, None]
    y = (x[:, 0] > 0).astype(int)
    y[[19, 20]] = y[[20, 19]]  # overlap by two samples, which few resamples keep
    with pytest.raises(ValueError, match=r"at least 2 resamples with an optimum, got [01] of 2"):
        inference(x, y, bootstrap=2, seed=3)
