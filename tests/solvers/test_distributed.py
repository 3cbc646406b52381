"""Several processes that share the samples find the same solution as one process with all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import in_group
from torch import Tensor

from softmax_torch.solvers import fit

SPLIT = 90  # uneven on purpose


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Return samples, whose last class occurs only after the split, classes and weights."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    y = (X @ torch.randn(5, 3, generator=generator, dtype=torch.float64)).argmax(1)
    y[SPLIT + 1 :: 9] = 3
    return X, y, torch.rand(300, generator=generator, dtype=torch.float64)


CASES: list[dict[str, Any]] = [
    {},
    {"solver": "newton", "C": 0.1},
    {"class_weight": "balanced", "fit_intercept": False},
    {"C": float("inf")},
]


def work(rank: int, folder: str) -> None:
    X, y, weight = data()
    part = slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    found = [
        fit(X[part], y[part], sample_weight=weight[part], tol=1e-10, distributed=True, **case)
        for case in CASES
    ]
    torch.save([(s.weight, s.bias, s.objective) for s in found], f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    in_group(work, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    X, y, weight = data()
    for case, (W, b, objective), (W1, b1, objective1) in zip(CASES, first, second, strict=True):
        assert W.equal(W1)
        assert b.equal(b1)
        assert objective == objective1
        alone = fit(X, y, sample_weight=weight, tol=1e-10, **case)
        assert objective == pytest.approx(alone.objective, rel=1e-9)
        torch.testing.assert_close(W, alone.weight, atol=1e-3, rtol=1e-3)


def test_without_a_group_it_is_refused() -> None:
    X, y, _ = data()
    with pytest.raises(ValueError, match=r"expected a process group .*got none"):
        fit(X, y, distributed=True)
