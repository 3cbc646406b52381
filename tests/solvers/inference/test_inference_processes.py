"""Several processes that share the samples find the inference of one process with all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_samples import labels, small
from support import in_group

from softmax_torch.solvers import cross_validate, inference, path

SPLIT = 110  # uneven on purpose
OPTIONS: list[dict[str, Any]] = [
    {"bootstrap": 6},
    {"covariance": "HC1", "reference": "mid"},
    {"covariance": "cluster", "bootstrap": 6},
    {"penalty": "l2", "C": 0.1, "reference": None},
    {"penalty": "firth", "reference": "mid"},
]


def samples() -> tuple[Any, Any, Any, Any]:
    """Return samples whose label "mid", and whose groups above 20, are on one process alone."""
    X, y, groups = small()
    y[:SPLIT] = np.where(y[:SPLIT] == 2, 1, y[:SPLIT])
    groups[:SPLIT] %= 20
    weight = np.random.default_rng(1).random(300) + 0.5
    return X, labels(y), [f"g{g}" for g in groups], weight


def numbers(part: slice, distributed: bool) -> list[Any]:
    X, y, groups, weight = samples()
    X, y, groups, weight = X[part], y[part], groups[part], weight[part]
    found: list[Any] = []
    for options in OPTIONS:
        given = groups if options.get("covariance") == "cluster" else None
        result = inference(
            X, y, sample_weight=weight, groups=given, distributed=distributed, **options
        )
        found += [result.coefficients, result.covariance]
        if result.bootstrap is not None:
            found.append(result.bootstrap.draws)
        if options.get("penalty") == "firth":
            found.append(result.likelihood_ratio_test(1).statistic)
        if options == OPTIONS[0]:
            for name in ("wald_test", "likelihood_ratio_test", "score_test"):
                found.append(getattr(result, name)([0, 2]).statistic)
            for at in ("average", "mean"):
                effects = result.marginal_effects(at)  # type: ignore[arg-type]
                found += [effects.effects, effects.standard_errors]
            found += [result.likelihood_ratio.statistic, result.bic]  # type: ignore[union-attr]
    index = np.unique(samples()[1], return_inverse=True)[1][part]
    Cs = [0.01, 0.1, 1.0]
    options = {"sample_weight": weight, "tol": 1e-12, "distributed": distributed}
    found += [each.objective for each in path(X, index, Cs, **options)]
    chosen = cross_validate(X, index, Cs, folds=3, **options)
    return [*found, chosen.nll, chosen.accuracy, chosen.best]


def work(rank: int, folder: str) -> None:
    part = slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    torch.save(numbers(part, True), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    in_group(work, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = numbers(slice(None), False)
    assert len(first) == len(alone)
    for mine, other, expected in zip(first, second, alone, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7)


def test_without_a_group_it_is_refused() -> None:
    X, y, _, _ = samples()
    with pytest.raises(ValueError, match=r"expected a process group .*got none"):
        inference(X, y, distributed=True)
