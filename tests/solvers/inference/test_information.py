"""The information matrix of all kinds of samples, and what a covariance takes."""

from typing import Any

import numpy as np
import pytest
import torch
from small_samples import small
from torch import Tensor

from softmax_torch.solvers import inference
from softmax_torch.solvers.inference import information, memory, weighted_grams
from softmax_torch.solvers.inference.information import dense_rows
from softmax_torch.solvers.inputs import as_samples
from softmax_torch.solvers.problem import objective_of

X, Y, GROUPS = small()


def dense(D: int, generator: torch.Generator) -> Tensor:
    return torch.randn(150, D, generator=generator, dtype=torch.float64)


def sparse(D: int, generator: torch.Generator) -> Tensor:
    """Columns whose shares of entries that are not 0 differ, up to 20%; the first has none."""
    shares = torch.linspace(0, 0.2, D)
    return dense(D, generator) * (torch.rand(150, D, generator=generator) < shares)


@pytest.mark.parametrize("form", [dense, sparse])
@pytest.mark.parametrize(("D", "K"), [(3, 4), (6, 3), (6, 70)])
@pytest.mark.parametrize("weighted", [False, True])
def test_information(
    form: Any, D: int, K: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sum_i w_i (diag p - p p^T) x x^T of the definition, with few columns counted as many."""
    if D == 6:
        monkeypatch.setattr(weighted_grams, "FEW", 2)
        monkeypatch.setattr(weighted_grams, "STRIP", 3)
    monkeypatch.setattr(information, "ROWS_AT_A_TIME", 64)
    generator = torch.Generator().manual_seed(0)
    x = form(D, generator)
    y = torch.arange(150) % K
    w = torch.rand(150, generator=generator, dtype=torch.float64) + 2.5 if weighted else None
    objective = objective_of(x, y, True, w, None, None, None)
    theta = torch.randn(K, D + 1, generator=generator, dtype=torch.float64)
    ones = torch.cat([x, torch.ones(150, 1, dtype=torch.float64)], 1)
    p = (ones @ theta.T).softmax(1)
    curvature = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    if w is not None:
        curvature *= w[:, None, None]
    for r in (0, K - 1):
        others = [k for k in range(K) if k != r]
        part = curvature[:, others][:, :, others]
        expected = torch.einsum("nkl,np,nq->kplq", part, ones, ones).reshape((K - 1) * (D + 1), -1)
        found = information.information(objective, theta, r)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_dense_rows_of_each_form() -> None:
    x = torch.tensor(X) * (torch.tensor(X) > 0)
    forms = [x, x.float(), x.numpy(), x.to_sparse_csr(), [x[:70], x[70:]]]
    for form in forms:
        pieces = list(dense_rows(as_samples(form, None, None), True))
        rows = torch.cat([piece for piece, _ in pieces])
        assert rows.dtype == torch.float64
        torch.testing.assert_close(rows[:, :3], x, rtol=1e-6, atol=0)
        assert bool((rows[:, 3] == 1).all())
        assert sum(at.stop - at.start for _, at in pieces) == 300
    shifted = as_samples(x, None, torch.float32).shifted(torch.tensor([1.0, 0.0, 1 / 3]).double())
    rows = torch.cat([piece for piece, _ in dense_rows(shifted, False)])
    assert torch.equal(rows, x - torch.tensor([1.0, 0.0, 1 / 3]).double())


def test_too_large_a_covariance_is_refused_before_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.needed(10, 785) == pytest.approx(2.4e9, rel=0.01)
    free = memory.available(torch.device("cpu"))
    assert free is None or free > 1e6
    monkeypatch.setattr(memory, "available", lambda device: memory.needed(3, 4) - 1)
    match = r"fits into 3.07e-06 GB .* 8 coefficients \(3 classes, 4 columns .*takes about 3.07e-06"
    with pytest.raises(MemoryError, match=match):
        inference(X, np.zeros_like(Y) + (X[:, 0] > 0) + (X[:, 0] > 1))  # separated, too
    monkeypatch.setattr(memory, "available", lambda device: memory.needed(3, 4))
    inference(X, Y)
    with pytest.raises(MemoryError, match="and the scores of 30 groups"):
        inference(X, Y, covariance="cluster", groups=GROUPS)
