"""Intervals of coefficients cover the truth as often as they say, over 2,000 simulated data sets.

The data sets are small: 3 classes, 2 features. All are fitted and their covariances computed at
once, by the formulas of ``covariance``; a few of them are compared with ``inference`` itself.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from softmax_torch.solvers import inference
from softmax_torch.solvers.inference.normal import interval

pytestmark = pytest.mark.slow

REPEATS, K, P = 2000, 3, 3
THETA = torch.tensor([[0.0, 0.0, 0.0], [0.8, -0.5, 0.3], [-0.6, 0.7, -0.2]], dtype=torch.float64)
"""Coefficients of class 0, 1 and 2; the last column is the intercept."""


class Simulated(NamedTuple):
    """Data sets x (J, n, P) with a column of ones, classes (J, n), weights (J, n), groups (n,)."""

    x: Tensor
    y: Tensor
    w: Tensor
    groups: Tensor


class Fits(NamedTuple):
    """Coefficients (J, 2 P) relative to class 0, H^-1 (J, 2 P, 2 P), scores (J, n, 2 P)."""

    gamma: Tensor
    inverse: Tensor
    scores: Tensor


def simulated(kind: str, n: int, seed: int) -> Simulated:
    """Return data sets of a model that holds, or in which weights or groups matter."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(REPEATS, n, P, generator=generator, dtype=torch.float64)
    x[..., -1] = 1.0
    w, groups, z = torch.ones(REPEATS, n).double(), torch.arange(n), x @ THETA.T
    if kind == "weights":  # sampling weights of 0.3 or 3
        w = torch.where(torch.rand(w.shape, generator=generator) < 0.5, 0.3, 3.0).double()
    if kind == "clusters":  # neighbours share the first feature, and how they deviate
        groups = torch.arange(n) // 5
        x[..., 0] = x[:, ::5, 0].repeat_interleave(5, 1)
        own = torch.randn(REPEATS, n // 5, K, generator=generator, dtype=torch.float64)
        z = x @ THETA.T + 1.2 * own.repeat_interleave(5, 1)
    noise = torch.rand(z.shape, generator=generator, dtype=torch.float64).log().neg().log().neg()
    return Simulated(x, (z + noise).argmax(2), w, groups)


def fitted(data: Simulated) -> Fits:
    """Return the optimum of each data set, by Newton's method from 0, a hundred at a time."""
    pieces = [torch.split(part, 100) for part in data[:3]]
    found = [_fitted(Simulated(*each, data.groups)) for each in zip(*pieces, strict=True)]
    return Fits(*map(torch.cat, zip(*found, strict=True)))


def _fitted(data: Simulated) -> Fits:
    x, y, w, _ = data
    xx = (x.unsqueeze(3) * x.unsqueeze(2)).flatten(2)
    one_hot = torch.nn.functional.one_hot(y, K)[..., 1:].double()
    gamma = x.new_zeros(len(x), 2, P)
    for _ in range(8):
        p = torch.nn.functional.pad(x @ gamma.mT, (1, 0)).softmax(2)[..., 1:]
        scores = ((one_hot - p).unsqueeze(3) * x.unsqueeze(2)).flatten(2)
        c = w[..., None, None] * (torch.diag_embed(p) - p.unsqueeze(3) * p.unsqueeze(2))
        H = (c.flatten(2).mT @ xx).view(-1, 2, 2, P, P).transpose(2, 3).reshape(-1, 2 * P, 2 * P)
        g = (w.unsqueeze(2) * scores).sum(1)
        step = torch.linalg.solve(H, g)
        gamma = gamma + step.view(gamma.shape)
    assert step.abs().max() < 1e-6
    return Fits(gamma.flatten(1), torch.linalg.inv(H), scores)


def covariance(data: Simulated, fits: Fits, kind: str) -> Tensor:
    """Return the covariances (J, 2 P, 2 P)."""
    _, _, w, groups = data
    if kind == "nonrobust":
        return fits.inverse
    if kind == "HC0":
        middle = fits.scores.mT @ (w.unsqueeze(2) * fits.scores)
        return fits.inverse @ middle @ fits.inverse
    G = int(groups.max()) + 1
    u = fits.scores.new_zeros(len(w), G, 2 * P)
    u.index_add_(1, groups, w.unsqueeze(2) * fits.scores)
    return fits.inverse @ u.mT @ u @ fits.inverse * G / (G - 1)


def coverage(data: Simulated, fits: Fits, kind: str, truth: Tensor) -> Tensor:
    """Return the share of 95% intervals that cover each coefficient (2 P,)."""
    errors = covariance(data, fits, kind).diagonal(dim1=1, dim2=2).sqrt()
    low, high = interval(fits.gamma, errors, 0.95).unbind(2)
    return ((low <= truth) & (truth <= high)).double().mean(0)


def check_against_inference(data: Simulated, fits: Fits, kind: str) -> None:
    """Compare a few data sets with ``inference``."""
    for j in range(3):
        groups = data.groups if kind == "cluster" else None
        found = inference(
            data.x[j, :, :-1],
            data.y[j],
            sample_weight=data.w[j],
            covariance=kind,  # type: ignore[arg-type]
            groups=groups,
        )
        torch.testing.assert_close(found.coefficients.flatten(), fits.gamma[j])
        each = Simulated(*(part[j : j + 1] for part in data[:3]), data.groups)
        one = Fits(*(part[j : j + 1] for part in fits))
        torch.testing.assert_close(found.covariance, covariance(each, one, kind)[0])


def test_a_model_that_holds() -> None:
    data = simulated("model", 200, 0)
    fits = fitted(data)
    for kind in ("nonrobust", "HC0"):
        check_against_inference(data, fits, kind)
        covered = coverage(data, fits, kind, (THETA[1:] - THETA[0]).flatten())
        assert 0.93 < float(covered.min()) <= float(covered.max()) < 0.97


def test_sampling_weights_need_a_group_for_each_sample() -> None:
    """Their sandwich covers; the covariance of frequencies does not."""
    data = simulated("weights", 200, 1)
    fits = fitted(data)
    check_against_inference(data, fits, "cluster")
    truth = (THETA[1:] - THETA[0]).flatten()
    covered = coverage(data, fits, "cluster", truth)
    assert 0.93 < float(covered.min()) <= float(covered.max()) < 0.97
    assert float(coverage(data, fits, "nonrobust", truth).min()) < 0.90


def test_a_wrong_model_needs_the_sandwich() -> None:
    """The truth is that of all data sets together, whose logits have a square."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(REPEATS, 300, P, generator=generator, dtype=torch.float64)
    x[..., -1] = 1.0
    z = x @ THETA.T + x[..., :1].square() * torch.tensor([0.0, 1.5, 0.0])
    noise = torch.rand(z.shape, generator=generator, dtype=torch.float64).log().neg().log().neg()
    y = (z + noise).argmax(2)
    data = Simulated(x, y, torch.ones(REPEATS, 300).double(), torch.arange(300))
    fits = fitted(data)
    check_against_inference(data, fits, "HC0")
    whole = Simulated(x.reshape(1, -1, P), y.reshape(1, -1), data.w.reshape(1, -1), data.groups)
    truth = fitted(whole).gamma[0]
    covered = coverage(data, fits, "HC0", truth)
    assert 0.93 < float(covered.min()) <= float(covered.max()) < 0.97
    assert float(coverage(data, fits, "nonrobust", truth).max()) > 0.98  # too wide


def test_clusters_need_their_covariance() -> None:
    """The truth is that of all data sets together: shared deviations shrink the coefficients."""
    data = simulated("clusters", 300, 3)
    fits = fitted(data)
    check_against_inference(data, fits, "cluster")
    whole = Simulated(
        data.x.reshape(1, -1, P), data.y.reshape(1, -1), data.w.reshape(1, -1), data.groups
    )
    truth = fitted(whole).gamma[0]
    covered = coverage(data, fits, "cluster", truth)
    assert 0.93 < float(covered.min()) <= float(covered.max()) < 0.97
    assert float(coverage(data, fits, "nonrobust", truth).min()) < 0.90
